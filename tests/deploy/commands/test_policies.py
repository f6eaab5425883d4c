"""`trident bench policies`: what it prints, and what it says of input that it cannot use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from deploy.commands.bench import app

SECONDS = 0.02
"""Between two requests of the trace."""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    generator = np.random.default_rng(0)
    lines = [
        f"2023-11-16 18:15:{number * SECONDS:09.6f}0,{generator.integers(1, 700)},{generator.integers(1, 50)}"
        for number in range(200)
    ]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]) + "\n", encoding="utf-8")
    return path


def bench(trace: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["policies", "--trace", str(trace), *options])


def figures(trace: Path, *options: str) -> list[dict[str, float]]:
    answer = bench(trace, "--json", *options)
    assert answer.exit_code == 0, answer.output
    found: list[dict[str, float]] = json.loads(answer.stdout)
    return found


def test_it_prints_figures_of_every_policy_at_every_load(trace: Path) -> None:
    found = figures(trace, "--costs", "cpu", "--loads", "0.5,1.5", "--policies", "predictive,dynamic")
    assert [(each["policy"], each["load"]) for each in found] == [
        ("predictive", 0.5),
        ("dynamic", 0.5),
        ("predictive", 1.5),
        ("dynamic", 1.5),
    ]
    for each in found:
        assert each["attained"] + each["rejected"] + each["late"] == pytest.approx(1)
        assert each["goodput"] == pytest.approx(each["attained"] * each["load"])
        assert len(each["by_length"]) == 4  # type: ignore[arg-type]
    assert found[2]["attained"] > found[3]["attained"]


def test_a_part_that_is_left_out_is_missed(trace: Path) -> None:
    whole, less = (
        figures(trace, "--loads", "1.5", "--policies", "predictive", "--knows-costs", *options)[0]
        for options in ((), ("--without", "sheds"))
    )
    assert less["attained"] < whole["attained"]


def test_what_was_written_counts_on_request(trace: Path) -> None:
    """All sources are of one token; answers are not."""
    short, long = (
        figures(trace, "--cap", "1", "--loads", "1", "--policies", "immediate", *options)[0]
        for options in ((), ("--decode",))
    )
    assert short["by_length"][1:] == [None] * 3  # type: ignore[index]
    assert long["batches"] != short["batches"]


def test_waiting_and_foresight_are_policies_too(trace: Path) -> None:
    found = figures(trace, "--requests", "60", "--loads", "1", "--policies", "waiting,oracle", "--arrivals", "bursty")
    assert all(0 < each["attained"] <= 1 for each in found)


def test_figures_and_settings_are_kept(trace: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    found = figures(trace, "--loads", "1", "--policies", "predictive", "--output", str(kept))
    record = json.loads(kept.read_text(encoding="utf-8"))
    assert [each["attained"] for each in record["figures"]] == [each["attained"] for each in found]
    assert record["settings"]["requests"] == 200


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--policies", "best"), "no policy 'best': choose among predictive"),
        (("--policies", ","), "--policies names none"),
        (("--loads", "0.5,high"), "--loads is '0.5,high': give numbers"),
        (("--loads", "-1"), "--loads is '-1': give positive numbers"),
        (("--loads", "nan"), "--loads is 'nan': give positive numbers"),
        (("--costs", "tpu"), "no costs 'tpu': choose cpu, gpu or measured"),
        (("--arrivals", "daily"), "no arrivals 'daily': choose among trace"),
        (("--without", "luck"), "no part of predictive 'luck'"),
    ],
)
def test_an_option_that_cannot_be_used_is_named_in_one_line(trace: Path, options: tuple[str, str], told: str) -> None:
    answer = bench(trace, *options)
    assert answer.exit_code == 2
    assert told in answer.stderr
    assert answer.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("time,tokens\n1,2\n", "no column TIMESTAMP"),
        ("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,3\n", "no column GeneratedTokens"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,many,3\n", "line 2, cannot be read"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "has no rows"),
    ],
)
def test_a_trace_that_cannot_be_read_is_named_in_one_line(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text, encoding="utf-8")
    answer = bench(path)
    assert answer.exit_code == 2
    assert told in answer.stderr
    assert str(path) in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_a_trace_that_is_not_there_is_named(tmp_path: Path) -> None:
    answer = bench(tmp_path / "none.csv")
    assert answer.exit_code == 2
    assert "none.csv does not exist" in answer.stderr


def test_a_table_is_made_of_what_was_kept(trace: Path, tmp_path: Path) -> None:
    kept = [tmp_path / "whole.json", tmp_path / "less.json"]
    options = ("--loads", "0.5,1.5", "--policies", "predictive", "--output")
    whole = figures(trace, *options, str(kept[0]))
    less = figures(trace, *options, str(kept[1]), "--without", "sheds")
    answer = CliRunner().invoke(app, ["report", *map(str, kept)])
    assert answer.stdout.splitlines() == [
        "| cpu, trace, first 200, at load | 0.5 | 1.5 |",
        "|---|---|---|",
        *(
            f"| {name} | {each[0]['attained']:.3f} | {each[1]['attained']:.3f} |"
            for name, each in (("predictive", whole), ("predictive without `sheds`", less))
        ),
    ]


def test_columns_of_a_table_say_where_results_differ(trace: Path, tmp_path: Path) -> None:
    kept = [tmp_path / f"{costs}.json" for costs in ("cpu", "gpu")]
    for path in kept:
        figures(trace, "--loads", "0.5", "--policies", "immediate", "--costs", path.stem, "--output", str(path))
    answer = CliRunner().invoke(app, ["report", *map(str, kept)])
    assert answer.stdout.splitlines()[0] == "| trace, first 200, at load | cpu 0.5 | gpu 0.5 |"
