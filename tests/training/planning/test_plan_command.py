"""`trident plan` as a user calls it: tables, JSON, exit status 0, 1 and 2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

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
