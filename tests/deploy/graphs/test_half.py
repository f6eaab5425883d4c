"""Graphs that compute in float16 say what their float32 originals say, alone, in batches, and through the engine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from deploy.bundle.export import export_bundle
from deploy.bundle.storage import load_graph
from deploy.graphs.catalog import GRAPHS
from deploy.graphs.half import compute_in_half
from deploy.graphs.weights import restore_weights
from deploy.parity.agreement import call
from deploy.parity.feeds import TRIALS, random_rows
from deploy.parity.graph_runner import GraphRunner
from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings
from deploy.triton.manifest import Precision, load_manifest
from deploy.triton.protocol import Task
from model.network import HybridModel
from tests.deploy.triton.engine_traffic import answer, make_rows

VOCABULARY = 32_000
ERROR = 0.03
"""Of a random network whose states are large: in deviations of the output."""


@pytest.fixture(scope="module")
def half_bundle(nano_model: HybridModel, tokenizer_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("half") / "bundle"
    export_bundle(nano_model, tokenizer_folder, folder, precision="fp16")
    return folder


def error_of(graph: str, reference: GraphRunner, other: GraphRunner, lengths: list[int]) -> float:
    """The largest difference, in deviations of the reference."""
    ids_BS, lengths_B = random_rows(VOCABULARY, lengths)
    expected, found = (call(graph, each, ids_BS, lengths_B) for each in (reference, other))
    inside_BS = np.arange(ids_BS.shape[1]) < lengths_B[:, None]
    worst = 0.0
    for name, array in expected.items():
        rows = inside_BS if array.ndim == 3 and array.shape[1] == ids_BS.shape[1] else slice(None)
        worst = max(worst, float(np.abs(found[name].astype(np.float32) - array)[rows].max() / array[rows].std()))
    return worst


@pytest.mark.parametrize("graph", ["hybrid_lm", "router", "qa", "encoder", "generative_step", "pointer_step"])
def test_half_is_near_single(nano_bundle: Path, half_bundle: Path, graph: str) -> None:
    single, half = (GraphRunner(each / "graphs") for each in (nano_bundle, half_bundle))
    errors = [error_of(graph, single, half, list(lengths)) for lengths in TRIALS[1:]]
    assert 0 < max(errors) < ERROR


def test_far_positions_are_as_near_as_close_ones(nano_bundle: Path, half_bundle: Path) -> None:
    """Angles of position 2,000 in float16 would be off by half a radian."""
    single, half = (GraphRunner(each / "graphs") for each in (nano_bundle, half_bundle))
    assert error_of("encoder", single, half, [2_000]) < ERROR


def test_interfaces_stay_single_and_what_passes_between_graphs_is_half(half_bundle: Path) -> None:
    kinds = {
        info.name: info.type.tensor_type.elem_type
        for name in GRAPHS
        for info in load_graph(half_bundle / f"graphs/{name}.onnx").graph.output
    }
    for name in ("logits", "emissions", "task_probabilities"):
        assert kinds.pop(name) == TensorProto.FLOAT
    assert set(kinds.values()) == {TensorProto.FLOAT16}


def test_a_step_is_told_its_totals_and_searches_no_longest_row(half_bundle: Path) -> None:
    for name in ("generative_step", "pointer_step"):
        graph = load_graph(half_bundle / f"graphs/{name}.onnx").graph
        assert {"total_target", "total_source"} <= {each.name for each in graph.input}
        assert "ReduceMax" not in {node.op_type for node in graph.node}


def test_weights_come_back_as_float16_holds_them(half_bundle: Path, nano_model: HybridModel) -> None:
    restored = restore_weights(load_graph(half_bundle / f"graphs/{name}.onnx") for name in GRAPHS)
    for name, tensor in nano_model.state_dict().items():
        if name in restored:
            assert np.array_equal(restored[name], tensor.numpy().astype(np.float16).astype(np.float32)), name
    assert len(restored) > 50


@pytest.mark.parametrize("task", [Task.GENERATION, Task.SUMMARY])
def test_the_engine_answers_in_half_what_it_answers_in_single(nano_bundle: Path, half_bundle: Path, task: Task) -> None:
    """Alone and in a batch the same tokens; and those of float32 for nearly all rows, up to their first near tie."""
    assert load_manifest(half_bundle).precision == Precision.FP16
    half, single = (Engine(each, EngineSettings(threads=1, slots=8)) for each in (half_bundle, nano_bundle))
    rows = make_rows(8, max_new_tokens=6)
    together = answer(half, rows, task).tokens
    for row in rows[:3]:
        assert answer(half, [row], task).tokens[row.row_id] == together[row.row_id]
    expected = answer(single, rows, task).tokens
    assert sum(together[each] == expected[each] for each in expected) >= 6


def test_numbers_beyond_float16_are_refused() -> None:
    tensor = numpy_helper.from_array(np.full((4, 4), 1e6, np.float32), "w.T")
    node = helper.make_node("MatMul", ["x", "w.T"], ["y"])
    info = [helper.make_tensor_value_info(each, TensorProto.FLOAT, ["batch", 4]) for each in "xy"]
    model = helper.make_model(helper.make_graph([node], "large", info[:1], info[1:], [tensor]))
    with pytest.raises(ValueError, match=r"w\.T holds 1e\+06, more than float16's 65504"):
        compute_in_half(model)
