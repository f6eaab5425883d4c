"""Plots: what is drawn of which results, and that equal results give equal files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from deploy.benchmark.plots import curves, plot
from deploy.commands.bench import app


def run(load: float, **more: Any) -> dict[str, Any]:
    return {"load": load, "attained": 1 / (1 + load), "goodput": load / (1 + load), **more}


def policies(without: list[str], *figures: dict[str, Any]) -> dict[str, Any]:
    return {"what": "policies", "settings": {"without": without}, "figures": list(figures)}


SIMULATED = policies([], {"policy": "predictive", **run(1.5)}, {"policy": "predictive", **run(0.5)})
LIVE = policies([], {"policy": "dynamic", **run(1.0, answered_per_s=9.0, latency_ms_p50=40.0, simulated=run(1.0))})
PEER = {
    "what": "peers",
    "name": "LitServe",
    "rounds": [{"runs": [run(0.8)]}, {"runs": [run(0.4), run(1.5, answered_per_s=None, latency_ms_p50=None)]}],
}


def texts(path: Path) -> set[str]:
    return {each.text or "" for each in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")}


def test_a_curve_is_a_policy_or_a_server_by_load() -> None:
    drawn = curves([SIMULATED, policies(["ages"], {"policy": "predictive", **run(1.0)}), LIVE, PEER])
    assert {name: [each["load"] for each in runs] for name, runs in drawn.items()} == {
        "predictive": [0.5, 1.5],
        "predictive without ages": [1.0],
        "dynamic": [1.0],
        "dynamic, simulated": [1.0],
        "LitServe": [0.4, 0.8, 1.5],
    }


def test_latency_is_drawn_of_live_runs_alone(tmp_path: Path) -> None:
    plot([SIMULATED], tmp_path / "simulated.svg")
    plot([LIVE, PEER], tmp_path / "live.svg")
    assert {"Answered in time", "Goodput", "predictive"} <= texts(tmp_path / "simulated.svg")
    assert "Latency" not in texts(tmp_path / "simulated.svg")
    assert {"Latency", "dynamic, simulated", "LitServe"} <= texts(tmp_path / "live.svg")


def test_equal_results_give_equal_files(tmp_path: Path) -> None:
    for name in ("first.svg", "second.svg"):
        plot([SIMULATED, LIVE], tmp_path / name)
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()


def test_the_command_plots_files_and_names_what_it_cannot(tmp_path: Path) -> None:
    result = tmp_path / "result.json"
    result.write_text(json.dumps(SIMULATED), encoding="utf-8")
    answer = CliRunner().invoke(app, ["report", str(result), "--plot", str(tmp_path / "plot.svg")])
    assert answer.exit_code == 0, answer.output
    assert "predictive" in texts(tmp_path / "plot.svg")
    with pytest.raises(ValueError, match="only results of `bench policies` and of `bench peers`"):
        plot([{"what": "load"}], tmp_path / "other.svg")
    with pytest.raises(ValueError, match="no runs at any load"):
        plot([policies([])], tmp_path / "empty.svg")
