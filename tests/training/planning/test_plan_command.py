"""`trident plan` as a user calls it: tables, JSON, exit status 0, 1 and 2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy import cli

ROOT = Path(__file__).resolve().parents[3]
Trident = Callable[..., tuple[int, str, str]]
SMALL = ("--preset", "student", "--gpus", "4", "--rows", "32")


@pytest.fixture
def trident(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Trident:
    """Runs the command line in this process: exit status, stdout, stderr."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["trident", "plan", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return int(ended.value.code or 0), told.out, told.err

    return run


def test_the_default_is_the_guides_cluster(trident: Trident) -> None:
    status, told, _ = trident("--json")
    assert status == 0
    plan = json.loads(told)
    assert (plan["cluster"]["gpus"], plan["cluster"]["gpu"]["name"]) == (256, "a100-80gb")
    assert plan["job"]["layers"] == 128
    for layout in plan["layouts"]:
        assert [stage["layers"] for stage in layout["stages"]] == [16] * 8
    assert plan["deadline"]["hours"] == 72
    assert plan["deadline"]["plausible"] == (plan["layouts"][0]["hours"] <= 72)
    fastest = plan["free_to_choose"][0]
    assert fastest["tokens_per_s"] >= plan["layouts"][0]["tokens_per_s"]


def test_tables_say_memory_messages_chart_verdict_and_basis(trident: Trident) -> None:
    status, told, _ = trident(*SMALL, "--layout", "pipeline=2,tensor=2", "--tokens", "1e9")
    assert status == 0
    for words in ("4 × a100-80gb", "Layouts, fastest first", "Memory of one GPU", "Sent by the busiest GPU"):
        assert words in told
    assert "stage 0" in told
    assert "stage 1" in told
    assert "72 h are plausible: 1.0 billion tokens take" in told
    assert "formulas, tested against small real runs" in " ".join(told.split())


def test_a_deadline_that_is_too_short_is_not_plausible(trident: Trident) -> None:
    status, told, _ = trident(*SMALL, "--tokens", "1e12", "--hours", "1")
    assert status == 0
    assert "1 h are not plausible" in told


def test_json_and_table_are_of_one_plan(trident: Trident) -> None:
    _, told, _ = trident(*SMALL, "--json", "--top", "2")
    plan = json.loads(told)
    assert len(plan["layouts"]) == 2
    best = plan["layouts"][0]
    assert plan["deadline"]["tokens_within"] == pytest.approx(72 * 3600 * best["tokens_per_s"])
    _, table, _ = trident(*SMALL, "--top", "2")
    layout = best["layout"]
    assert f"data={layout['data']},tensor={layout['tensor']},pipeline={layout['pipeline']}" in table


def figures(plan: dict[str, Any]) -> list[str]:
    """Every figure of a plan's tables, as they print it."""
    told = []
    for price in plan["layouts"]:
        told += [f"{price['bubble']:.1%}", f"{price['step_s']:.3f}", f"{price['hours']:,.1f}", f"{price['mfu']:.1%}"]
        told += [f"{price['tokens_per_s'] / 1e3:,.0f}", f"{price['exposed_s'] / price['step_s']:.1%}"]
        told.append(f"{price['layout']['micro_rows']} × {price['micro_batches']}")
        told.append(" × ".join(str(price["layout"][name]) for name in ("data", "tensor", "pipeline", "sequence")))
    best = plan["layouts"][0]
    for stage in best["stages"]:
        told += [f"{size / 2**30:.2f}" for size in stage["memory_bytes"].values()]
    for each in best["communication"]:
        told += [f"{each['sent_bytes'] / 2**20:,.1f}", f"{each['seconds'] * 1e3:,.1f}"]
    return told


@pytest.mark.parametrize("columns", ["160", "80", "60", "40", None])
@pytest.mark.parametrize("options", [SMALL, ("--gpus", "28", "--rows", "4096", "--tokens", "1e13")])
def test_no_figure_is_cut_however_narrow_the_terminal(
    trident: Trident, monkeypatch: pytest.MonkeyPatch, columns: str | None, options: tuple[str, ...]
) -> None:
    if columns is None:
        monkeypatch.delenv("COLUMNS")  # as in a pipe
    else:
        monkeypatch.setenv("COLUMNS", columns)
    _, told, _ = trident(*options)
    _, plan, _ = trident(*options, "--json")
    cells = [cell.strip() for line in told.splitlines() for cell in line.split("│")]
    assert [figure for figure in figures(json.loads(plan)) if figure not in cells] == []
    assert "…" not in told
    assert max(map(len, told.splitlines())) <= int(columns or 80)


def test_the_chart_is_whole_in_a_narrow_terminal(trident: Trident, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    _, told, _ = trident(*SMALL, "--layout", "pipeline=2,tensor=2")
    charts = [line for line in told.splitlines() if line.startswith("stage ") and "│" not in line]
    assert [len(line) for line in charts] == [60, 60]
    # A step ends when its last stage does.
    assert any(not line.endswith(".") for line in charts)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (
            ("--gpus", "7"),
            "2,048 rows a step do not divide by 7: at most 1 of 7 can be data ranks, and the others must share layers "
            "or rows. --rows 2044 or 2051 would divide, and so would --gpus 4 or 8",
        ),
        (
            ("--gpus", "56", "--preset", "teacher", "--layout", "tensor=2"),
            "2,048 rows a step do not divide by 28: at most 4 of 28 can be data ranks, and the others must share "
            "layers or rows. --rows 2044 or 2072 would divide, and so would --gpus 32 or 64",
        ),
        (("--gpus", "8", "--preset", "teacher"), None),
        (("--gpus", "7", "--preset", "teacher", "--layout", "data=1"), None),
    ],
)
def test_a_world_size_that_rows_do_not_divide_by_is_told_with_what_would(
    trident: Trident, options: tuple[str, ...], why: str | None
) -> None:
    _, told, _ = trident(*options, "--top", "1")
    assert ("do not divide" in told) == (why is not None)
    assert why is None or why in " ".join(told.split())
    _, plan, _ = trident(*options, "--top", "1", "--json")
    assert json.loads(plan)["uneven"] == why


def test_assumptions_change_the_answer(trident: Trident) -> None:
    hours = []
    for fraction in ("0.2", "0.8"):
        _, told, _ = trident(*SMALL, "--json", "--matmul-fraction", fraction, "--recurrent-step-us", "1")
        plan = json.loads(told)
        assert plan["cluster"]["assumptions"]["matmul_fraction"] == float(fraction)
        hours.append(plan["layouts"][0]["hours"])
    assert hours[0] > hours[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gpu", "a200"), "unknown GPU 'a200': choose from a100-40gb, a100-80gb"),
        (("--interconnect", "string"), "unknown interconnect 'string': choose from hdr200"),
        (("--preset", "huge"), "unknown preset 'huge': choose from guide, teacher, student, nano"),
        (("--set", "d_modle=3"), "unknown field 'd_modle'"),
        (("--set", "d_model"), "'d_model' is not NAME=NUMBER"),
        (("--layout", "pipes=2"), "unknown dimension 'pipes' of a layout"),
        (("--split", "evenly"), "split must be one of cost, layers"),
        (("--precision", "int8"), "unknown precision 'int8'"),
        (("--matmul-fraction", "3"), "matmul_fraction must be in (0, 1]"),
        (("--gpus", "0"), "Invalid value for '--gpus'"),
    ],
)
def test_bad_usage_is_status_2_and_names_what_is_known(
    trident: Trident, arguments: tuple[str, ...], message: str
) -> None:
    status, told, said = trident(*arguments)
    assert (status, told) == (2, "")
    assert message in " ".join(said.replace("│", " ").split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--layout", "data=2,tensor=2,pipeline=2,sequence=1"),
            "2 data × 2 tensor × 2 pipeline × 1 sequence = 8 does not make 4 GPUs: data=1 would",
        ),
        (("--layout", "tensor=3"), "tensor × pipeline × sequence must divide 4, and is 3"),
        (("--gpu", "l4", "--set", "d_model=16384", "--layout", "zero=0,tensor=1"), "layouts fits 4 × l4"),
    ],
)
def test_layouts_that_do_not_fit_are_one_line_and_status_1(
    trident: Trident, arguments: tuple[str, ...], message: str
) -> None:
    status, told, said = trident(*SMALL, *arguments)
    assert (status, told) == (1, "")
    (line,) = said.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_the_planner_loads_no_torch() -> None:
    """It runs where no GPU is, and a training process asks it for FLOPs."""
    code = (
        "import sys, training.planning.command, training.planning.report; "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
