"""`trident bench kernels`: time by operator, and its share of what the machine does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.benchmark.kernels import Ceilings, measure_ceilings, summarise
from deploy.commands.bench import app as bench_app

CEILINGS = Ceilings(fp32_gflop_per_s=100.0, int8_gop_per_s=400.0, copy_gb_per_s=5.0)


def event(
    name: str, kind: str, duration_us: int, left: list[int], result: list[int], begin_us: int = 0
) -> dict[str, Any]:
    """A node's time as ONNX Runtime's profiler writes it."""
    shapes = {"input_type_shape": [{"float": left}], "output_type_shape": [{"float": result}]}
    timed = {"name": f"{name}_kernel_time", "ts": begin_us, "dur": duration_us}
    return {"cat": "Node", "args": {"op_name": kind, **shapes}, **timed}


def test_the_first_run_warms_up_and_the_median_of_the_others_counts() -> None:
    events = [event("up", "MatMul", each, [1, 10, 100], [1, 10, 1000]) for each in (9000, 20, 80, 40)]
    (product,) = summarise(events, 4, CEILINGS)
    assert (product.nodes, product.ms) == (1, 0.04)
    assert product.gop_per_s == pytest.approx(2 * 10 * 100 * 1000 / 40e-6 / 1e9)
    assert product.of_ceiling == pytest.approx(product.gop_per_s / 100)


def test_nodes_of_one_kind_are_summed_and_the_dearest_kind_comes_first() -> None:
    events = [
        event("one", "MatMulNBits", 10, [8, 100], [8, 50]),
        event("two", "MatMulNBits", 30, [8, 100], [8, 150]),
        event("norm", "LayerNormalization", 60, [8, 100], [8, 100]),
        {"cat": "Session", "name": "model_run", "dur": 500, "args": {}},
    ]
    norm, product = summarise(events, 1, CEILINGS)
    assert (norm.kind, norm.share, norm.gop_per_s, norm.of_ceiling) == ("LayerNormalization", 0.6, None, None)
    assert (product.kind, product.nodes, product.share) == ("MatMulNBits", 2, 0.4)
    assert product.gop_per_s == pytest.approx(2 * 8 * 100 * 200 / 40e-6 / 1e9)
    assert product.of_ceiling == pytest.approx(product.gop_per_s / 400)


def test_a_scan_counts_without_the_nodes_that_it_runs() -> None:
    events = [
        event("step", "Tanh", 10, [8, 10], [8, 10], begin_us=100),
        event("step", "Tanh", 20, [8, 10], [8, 10], begin_us=150),
        event("all", "Scan", 100, [2, 8, 10], [2, 8, 10], begin_us=90),
        event("after", "Tanh", 7, [8, 10], [8, 10], begin_us=190),
    ]
    found = {each.kind: (each.nodes, each.ms) for each in summarise(events, 1, CEILINGS)}
    assert found["Scan"] == (1, 0.07)
    assert found["Tanh"][1] == pytest.approx(0.037)


def test_ceilings_are_measured() -> None:
    found = measure_ceilings(threads=1)
    assert min(found.fp32_gflop_per_s, found.int8_gop_per_s, found.copy_gb_per_s) > 0


def test_the_command_profiles_graphs_of_a_bundle(nano_bundle: Path, tmp_path: Path) -> None:
    output = tmp_path / "new" / "kernels.json"
    arguments = ["kernels", "--bundle", nano_bundle, "--rows", 2, "--tokens", 20, "--repeats", 2, "--output", output]
    ran = CliRunner().invoke(bench_app, [str(each) for each in arguments])
    assert ran.exit_code == 0, ran.output
    result = json.loads(output.read_text())
    assert [(each["graph"], each["rows"], each["tokens"]) for each in result["graphs"]] == [
        ("qa", 2, 20),
        ("encoder", 2, 20),
    ]
    for graph in result["graphs"]:
        assert sum(each["share"] for each in graph["operators"]) == pytest.approx(1)
        products = [each for each in graph["operators"] if each["kind"] == "MatMul"]
        assert products
        assert products[0]["gop_per_s"] > 0
    assert "| MatMul |" in ran.stdout
    assert "Ceilings:" in ran.stdout


def test_a_graph_that_a_bundle_has_not_is_named(nano_bundle: Path) -> None:
    ran = CliRunner().invoke(bench_app, ["kernels", "--bundle", str(nano_bundle), "--graph", "oracle"])
    assert isinstance(ran.exception, ValueError)
    assert "'oracle'" in str(ran.exception)
