"""`trident bench turns`: bundles side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.benchmark.turns import in_turns, read_case
from deploy.commands.bench import app as bench_app


def test_variants_take_turns_and_the_first_turn_does_not_count() -> None:
    ran: list[str] = []
    times = in_turns({name: lambda name=name: ran.append(name) for name in "ab"}, 2)
    assert ran == ["a", "b"] * 3
    assert {len(each) for found in times.values() for each in found.values()} == {2}


@pytest.mark.parametrize("text", ["qa", "qa:1", "qa:0x4", "qa:1x4x2", ""])
def test_what_is_no_case_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="GRAPH:ROWSxTOKENS"):
        read_case(text)


def test_the_command_holds_bundles_against_the_first(nano_bundle: Path, tmp_path: Path) -> None:
    output, again = tmp_path / "turns.json", tmp_path / "again"
    again.symlink_to(nano_bundle)
    arguments = ["turns", "--bundle", nano_bundle, "--bundle", again, "--case", "qa:2x20"]
    ran = CliRunner().invoke(bench_app, [str(each) for each in [*arguments, "--repeats", 2, "--output", output]])
    assert ran.exit_code == 0, ran.output
    (case,) = json.loads(output.read_text())["cases"]
    assert (case["graph"], case["rows"], case["tokens"]) == ("qa", 2, 20)
    assert list(case["times"]) == [str(nano_bundle), str(again)]
    assert ran.stdout.count("| qa, 2 × 20 |") == 2
