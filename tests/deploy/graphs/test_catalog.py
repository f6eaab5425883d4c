"""Graphs: their interfaces, every opset, with and without fused operators, and results that no batch mate changes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from deploy.bundle.export import build_models
from deploy.bundle.storage import load_graph
from deploy.graphs.catalog import GRAPHS, build_graph
from deploy.graphs.weights import restore_weights
from deploy.parity.feeds import random_feeds, random_rows
from deploy.parity.graph_runner import GraphRunner

if TYPE_CHECKING:
    from model.network import HybridModel

INTERFACES = {
    "hybrid_lm": (["input_ids"], ["logits"]),
    "router": (["input_ids"], ["task_probabilities"]),
    "qa": (["input_ids", "lengths"], ["emissions"]),
    "encoder": (["input_ids", "lengths"], ["memory", "task_probabilities"]),
    "extractive": (["memory", "lengths"], ["emissions"]),
    "generative_prefill": (["memory"], [f"cross_{part}_{index}" for index in range(2) for part in ("key", "value")]),
    "pointer_prefill": (["memory"], ["cross_key_0", "cross_value_0", "copy_keys", "copy_keys_1"]),
}


def session_of(model: onnx.ModelProto) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", list(INTERFACES))
def test_inputs_and_outputs_have_the_published_names(nano_bundle: Path, name: str) -> None:
    graph = load_graph(nano_bundle / f"graphs/{name}.onnx").graph
    inputs, outputs = ({each.name for each in group} for group in (graph.input, graph.output))
    assert (inputs, outputs) == tuple(map(set, INTERFACES[name]))


@pytest.mark.parametrize("name", ["generative_step", "pointer_step"])
def test_every_cache_of_a_step_comes_back_as_present(nano_bundle: Path, name: str) -> None:
    graph = load_graph(nano_bundle / f"graphs/{name}.onnx").graph
    caches = {each.name for each in graph.input if each.name.startswith(("self_", "cross_"))}
    assert caches
    assert {each.name for each in graph.output} == {"logits", *(f"present_{cache}" for cache in caches)}


@pytest.mark.parametrize("name", ["hybrid_lm", "router", "qa"])
@pytest.mark.parametrize("opset", [15, 17, 18, 20, 22])
@pytest.mark.parametrize("fusion", [False, True])
def test_every_form_of_a_graph_computes_the_same(nano_model: HybridModel, name: str, opset: int, fusion: bool) -> None:
    reference = session_of(build_models(nano_model, (name,))[name])
    model = build_models(nano_model, (name,), opset=opset, fusion=fusion)[name]
    assert {each.domain: each.version for each in model.opset_import}[""] == opset
    other = session_of(model)
    for lengths in ([1], [20, 3, 37]):
        feeds = random_feeds(reference, 32_000, lengths)
        found, expected = (each.run(None, feeds)[0] for each in (other, reference))
        for row, length in enumerate(lengths):
            length = length if expected.ndim == 3 else None
            np.testing.assert_allclose(found[row, :length], expected[row, :length], atol=1e-4)


def test_without_fusion_there_are_standard_operators_alone(nano_model: HybridModel) -> None:
    graphs = build_models(nano_model, ("hybrid_lm", "qa", "encoder", "pointer_prefill"), fusion=False)
    assert {node.domain for model in graphs.values() for node in model.graph.node} == {""}


def test_with_fusion_attention_is_one_operator(nano_model: HybridModel) -> None:
    model = build_models(nano_model, ("encoder",))["encoder"]
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MultiHeadAttention") == nano_model.config.encoder_layers + nano_model.config.hybrid_units
    assert "Softmax" in kinds
    assert kinds.count("Softmax") == 2  # the units' mixture and the router


@pytest.mark.parametrize("name", ["pointer_step", "pointer_prefill"])
def test_opset_15_refuses_the_pointer_in_words(nano_model: HybridModel, name: str) -> None:
    with pytest.raises(ValueError, match=r"opset 15 has no ScatterElements\(reduction=add\)"):
        build_models(nano_model, (name,), opset=15)


@pytest.mark.parametrize("name", ["generative_step", "pointer_step"])
def test_a_step_without_fusion_is_refused_in_words(nano_model: HybridModel, name: str) -> None:
    with pytest.raises(ValueError, match="pass --enable_fusion"):
        build_models(nano_model, (name,), fusion=False)


@pytest.mark.parametrize("opset", [14, 23])
def test_other_opsets_are_refused_with_the_range(nano_model: HybridModel, opset: int) -> None:
    with pytest.raises(ValueError, match=f"opset must be from 15 to 22, got {opset}"):
        build_models(nano_model, ("router",), opset=opset)


def test_an_unknown_graph_is_refused_with_the_known_ones(nano_model: HybridModel) -> None:
    with pytest.raises(ValueError, match="unknown graph 'decoder': choose from hybrid_lm"):
        build_graph("decoder", nano_model.config, {})


def test_all_weights_come_back_from_the_graphs(nano_model: HybridModel, nano_bundle: Path) -> None:
    restored = restore_weights(load_graph(nano_bundle / f"graphs/{name}.onnx") for name in GRAPHS)
    for key, tensor in nano_model.state_dict().items():
        if not key.startswith("extractive.crf."):
            np.testing.assert_array_equal(restored[key], tensor.numpy(), err_msg=key)


@pytest.mark.parametrize("size", [1, 4, 5, 15, 16, 17, 19, 20, 21, 31, 32, 33, 36, 37, 80])
def test_neither_padding_nor_batch_mates_change_a_row(nano_bundle: Path, size: int) -> None:
    """Lengths at the borders of blocks (16) and halos (4)."""
    runner = GraphRunner(nano_bundle / "graphs")
    lengths = [size, 50, 1, max(1, size - 1)]
    ids_BS, lengths_B = random_rows(32_000, lengths)
    ids_BS[:, :] = np.where(np.arange(ids_BS.shape[1]) < lengths_B[:, None], ids_BS, 777)
    memory, probabilities = runner.encode(ids_BS, lengths_B)
    emissions = runner.emissions(ids_BS, lengths_B)
    for row, length in enumerate(lengths):
        alone, own = runner.encode(ids_BS[row : row + 1, :length], lengths_B[row : row + 1])
        np.testing.assert_allclose(memory[row, :length], alone[0], atol=1e-5)
        np.testing.assert_allclose(probabilities[row], own[0], atol=1e-6)
        alone = runner.emissions(ids_BS[row : row + 1, :length], lengths_B[row : row + 1])
        np.testing.assert_allclose(emissions[row, :length], alone[0], atol=1e-5)


@pytest.mark.parametrize("name", ["hybrid_lm", "router"])
def test_trailing_pads_are_no_tokens(nano_bundle: Path, name: str) -> None:
    runner = GraphRunner(nano_bundle / "graphs")
    ids_BS, _ = random_rows(32_000, [9])
    ids_BS[0, 4] = 0  # a pad inside a row is a token like any other
    padded_BS = np.pad(ids_BS, ((0, 0), (0, 30)))
    alone, padded = (runner.run(name, input_ids=each)[0] for each in (ids_BS, padded_BS))
    np.testing.assert_allclose(padded[:, :9] if name == "hybrid_lm" else padded, alone, atol=1e-5)


@pytest.mark.parametrize("name", ["hybrid_lm", "router"])
def test_a_row_of_pads_alone_counts_as_one_token(nano_bundle: Path, name: str) -> None:
    runner = GraphRunner(nano_bundle / "graphs")
    one, many = (runner.run(name, input_ids=np.zeros((1, size), np.int64))[0] for size in (1, 7))
    np.testing.assert_allclose(many[:, :1] if name == "hybrid_lm" else many, one, atol=1e-5)


@pytest.mark.parametrize("kind", ["generative", "pointer"])
def test_greedy_texts_are_equal_alone_and_batched(nano_bundle: Path, kind: str) -> None:
    runner = GraphRunner(nano_bundle / "graphs")
    ids_BS, lengths_B = random_rows(32_000, [1, 2, 60, 17, 33, 5, 16, 48])
    texts = runner.greedy(kind, ids_BS, lengths_B, 20)
    alone = [
        runner.greedy(kind, ids_BS[row : row + 1, :length], lengths_B[row : row + 1], 20)[0]
        for row, length in enumerate(lengths_B)
    ]
    assert texts == alone
    assert len({tuple(text) for text in texts}) > 3, "texts that do not vary prove nothing"
