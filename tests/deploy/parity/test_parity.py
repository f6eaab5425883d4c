"""PyTorch and ONNX compute the same: every graph, lengths at every kind of border, and whole greedy texts."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from deploy.bundle.checkpoints import load_bundle_model
from deploy.bundle.export import export_bundle
from deploy.parity.agreement import call
from deploy.parity.feeds import random_rows
from deploy.parity.graph_runner import GraphRunner
from deploy.parity.torch_runner import TorchRunner
from model.configuration import HybridConfig
from model.network import HybridModel

VOCABULARY = 32_000
BORDERS = [1, 2, 3, 4, 5, 11, 12, 13, 15, 16, 17, 19, 20, 21, 28, 31, 32, 33, 35, 36, 37, 47, 48, 49, 64, 100]
"""Around multiples of the nano preset's block (16), with and without its halo (4)."""

BATCHES = [[length] for length in BORDERS] + [[7, 16, 1, 50], [33] * 3, [90, 20], BORDERS]
"""Each length alone, then mixed; none of them is in any graph."""

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def graphs(nano_bundle: Path) -> GraphRunner:
    return GraphRunner(nano_bundle / "graphs")


@pytest.fixture(scope="module")
def network(nano_model: HybridModel) -> TorchRunner:
    return TorchRunner(nano_model)


def assert_close(graph: str, network: TorchRunner, graphs: GraphRunner, lengths: list[int]) -> None:
    ids_BS, lengths_B = random_rows(VOCABULARY, lengths, seed=len(lengths))
    expected, found = (call(graph, each, ids_BS, lengths_B) for each in (network, graphs))
    assert expected.keys() == found.keys()
    for name, reference in expected.items():
        by_token = reference.ndim == 3 and reference.shape[1] == ids_BS.shape[1]
        for row, length in enumerate(lengths):
            rows = slice(0, length if by_token else None)
            np.testing.assert_allclose(
                found[name][row][rows], reference[row][rows], atol=TOLERANCE, err_msg=f"{name}, row of {length}"
            )


@pytest.mark.parametrize("lengths", BATCHES, ids=str)
@pytest.mark.parametrize("graph", ["encoder", "qa", "extractive"])
def test_encoder_and_spans(network: TorchRunner, graphs: GraphRunner, graph: str, lengths: list[int]) -> None:
    assert_close(graph, network, graphs, lengths)


@pytest.mark.parametrize("lengths", [[1], [16], [37], [5, 49, 20], [33, 32]], ids=str)
@pytest.mark.parametrize("graph", ["hybrid_lm", "router", "generative_step", "pointer_step"])
def test_heads_and_decoders(network: TorchRunner, graphs: GraphRunner, graph: str, lengths: list[int]) -> None:
    assert_close(graph, network, graphs, lengths)


@pytest.mark.parametrize("kind", ["generative", "pointer"])
def test_greedy_texts_are_identical_on_50_sources_alone_and_batched(
    network: TorchRunner, graphs: GraphRunner, kind: str
) -> None:
    lengths = np.random.default_rng(3).integers(1, 80, 50).tolist()
    ids_BS, lengths_B = random_rows(VOCABULARY, lengths, seed=4)
    expected = network.greedy(kind, ids_BS, lengths_B, 12)
    assert graphs.greedy(kind, ids_BS, lengths_B, 12) == expected
    for row, length in enumerate(lengths[:10]):
        alone = graphs.greedy(kind, ids_BS[row : row + 1, :length], lengths_B[row : row + 1], 12)
        assert alone == [expected[row]]
    assert len({tuple(text) for text in expected}) > 25, "texts that do not vary prove nothing"


def test_rows_longer_than_the_position_table(
    network: TorchRunner, graphs: GraphRunner, nano_model: HybridModel
) -> None:
    """The table is stretched over such a row, beside a short row that reads it plainly."""
    longest = nano_model.config.max_positions
    for lengths in ([longest + 1], [longest + 37, 50]):
        assert_close("encoder", network, graphs, lengths)


def test_the_exact_recurrence(nano_model: HybridModel, tmp_path: Path, tokenizer_folder: Path) -> None:
    exact = HybridModel(HybridConfig.from_preset("nano", recurrent_block=None)).eval()
    exact.load_state_dict(nano_model.state_dict())
    export_bundle(exact, tokenizer_folder, tmp_path / "bundle")
    graphs, network = GraphRunner(tmp_path / "bundle/graphs"), TorchRunner(exact)
    for graph in ("encoder", "qa"):
        assert_close(graph, network, graphs, [60, 1, 17])


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_a_bundle_gives_back_the_network_it_computes_with(
    nano_model: HybridModel, tokenizer_folder: Path, tmp_path: Path, precision: str
) -> None:
    """PyTorch on the stored weights against the bundle: only the kernels' rounding of activations is left."""
    export_bundle(nano_model, tokenizer_folder, tmp_path / "bundle", precision=precision)
    graphs, network = GraphRunner(tmp_path / "bundle/graphs"), TorchRunner(load_bundle_model(tmp_path / "bundle"))
    most, mean = {"fp16": (0.03, 0.01), "int8": (0.5, 0.06), "int4": (0.5, 0.06)}.get(precision, (0.0, 0.0))
    for graph in ("encoder", "hybrid_lm", "qa", "generative_step"):
        ids_BS, lengths_B = random_rows(VOCABULARY, [40, 40])
        expected, found = (call(graph, each, ids_BS, lengths_B) for each in (network, graphs))
        for name, reference in expected.items():
            error = np.abs(found[name] - reference)
            assert error.max() <= max(most * reference.std(), TOLERANCE), (graph, name)
            assert error.mean() <= max(mean * reference.std(), TOLERANCE), (graph, name)


def test_other_weights_are_noticed(
    network: TorchRunner, nano_model: HybridModel, tokenizer_folder: Path, tmp_path: Path
) -> None:
    """The negative control: one matrix of one decoder layer changed is far above every tolerance."""
    changed = copy.deepcopy(nano_model)
    with torch.no_grad():
        changed.generative.layers[0].cross_attention.q.weight.mul_(1.05)
    export_bundle(changed, tokenizer_folder, tmp_path / "bundle")
    ids_BS, lengths_B = random_rows(VOCABULARY, [30])
    expected, found = (
        call("generative_step", each, ids_BS, lengths_B)["generative logits"]
        for each in (network, GraphRunner(tmp_path / "bundle/graphs"))
    )
    assert np.abs(found - expected).max() > 10 * TOLERANCE
