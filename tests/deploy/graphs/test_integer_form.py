"""Graphs that compute in integers: rows are nobody's business but their own, and errors stay small or are not made."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto

from deploy.bundle.export import build_models
from deploy.bundle.sensitivity import IntegerForms
from deploy.bundle.storage import write_graphs
from deploy.graphs.builder import GraphBuilder, Value
from deploy.graphs.integer_form import to_integers
from deploy.graphs.integers import ROW_LEVEL, WEIGHT_LEVEL, levels_of, quantise_rows, row_product
from deploy.graphs.precision import Narrower
from deploy.graphs.scan import Direction, scan
from deploy.parity.feeds import random_feeds, random_rows
from deploy.parity.graph_runner import GraphRunner
from model.network import HybridModel

FLOAT, INT32 = TensorProto.FLOAT, TensorProto.INT32
MIXED = [7, 16, 1, 50, 33, 20]
"""Row lengths on both sides of the nano preset's block."""


def run(model: onnx.ModelProto, **feeds: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def products(model: onnx.ModelProto, kind: str) -> list[str]:
    return [node.input[1] for node in model.graph.node if node.op_type == kind]


@pytest.fixture(scope="module", params=["int8", "int4"])
def graphs(request: pytest.FixtureRequest, nano_model: HybridModel, tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp(request.param)
    write_graphs(build_models(nano_model, ("encoder", "qa"), precision=request.param), folder)
    return GraphRunner(folder)


@pytest.mark.parametrize("graph", ["encoder", "qa"])
def test_a_row_is_the_same_to_the_bit_alone_in_a_batch_and_padded(graphs: GraphRunner, graph: str) -> None:
    ids_BS, lengths_B = random_rows(32_000, MIXED)
    call = graphs.emissions if graph == "qa" else lambda ids, lengths: graphs.encode(ids, lengths)[0]
    together = call(np.pad(ids_BS, ((0, 0), (0, 9))), lengths_B)
    for row, length in enumerate(MIXED):
        alone = call(ids_BS[row : row + 1, :length], lengths_B[row : row + 1])[0]
        assert np.array_equal(together[row, :length], alone), f"row of {length}"
    assert np.abs(together[0, :7] - together[3, :7]).max() > 0.1, "rows that are all alike prove nothing"


def test_the_largest_levels_do_not_saturate() -> None:
    """AVX2 adds two products in 16 bits: with one bit more for the weights this fails there."""
    builder = GraphBuilder(name="product", weights={}, opset=18, fusion=True)
    rows = builder.input("x", FLOAT, ["batch", 512])
    weight_NK = np.full((48, 512), 2.0, np.float32)
    levels = levels_of(builder, builder.initializer("w", weight_NK))
    builder.output("y", row_product(builder, quantise_rows(builder, rows), levels), FLOAT, ["batch", 48])
    model = builder.build()
    for count in (1, 5, 70):
        x_BK = np.full((count, 512), 3.0, np.float32)
        np.testing.assert_allclose(run(model, x=x_BK), x_BK @ weight_NK.T, rtol=1e-5)
    assert 2 * 255 * WEIGHT_LEVEL < 2**15 <= 2 * 255 * (2 * WEIGHT_LEVEL + 1)


def test_a_row_of_zeros_and_a_channel_of_zeros_stay_zero() -> None:
    builder = GraphBuilder(name="product", weights={}, opset=18, fusion=True)
    rows = builder.input("x", FLOAT, ["batch", 32])
    weight_NK = np.random.default_rng(0).standard_normal((33, 32)).astype(np.float32)
    weight_NK[5] = 0
    levels = levels_of(builder, builder.initializer("w", weight_NK))
    builder.output("y", row_product(builder, quantise_rows(builder, rows), levels), FLOAT, ["batch", 33])
    x_BK = np.random.default_rng(1).standard_normal((3, 32)).astype(np.float32)
    x_BK[1] = 0
    y_BN = run(builder.build(), x=x_BK)
    assert not y_BN[1].any()
    assert not y_BN[:, 5].any()
    # Half a level of either side for each of 32 products.
    bound = 32 * np.abs(x_BK).max() * np.abs(weight_NK).max() * (0.5 / ROW_LEVEL + 0.5 / WEIGHT_LEVEL)
    assert np.abs(y_BN - x_BK @ weight_NK.T).max() < bound


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_is_the_operator_that_it_stands_for(kind: str, reverse: bool) -> None:
    """Rows of every length, 0 included, up to what lies behind them."""
    units, width, gates = 32, 64, 3 if kind == "GRU" else 4
    random = np.random.default_rng(0)
    shapes = {"W": (1, gates * units, width), "R": (1, gates * units, units), "B": (1, 2 * gates * units)}
    weights = {name: random.uniform(-0.2, 0.2, shape).astype(np.float32) for name, shape in shapes.items()}
    lengths_B = np.array([0, 1, 5, 12], np.int32)
    hidden_SBD = random.standard_normal((12, 4, width)).astype(np.float32)

    def built(as_scan: bool) -> onnx.ModelProto:
        builder = GraphBuilder(name="recurrence", weights={}, opset=18, fusion=True)
        hidden = builder.input("x", FLOAT, ["steps", "batch", width])
        lengths = builder.input("lengths", INT32, ["batch"])
        inputs, states, bias = (builder.initializer(name, each) for name, each in weights.items())
        if as_scan:
            halves = builder.split(builder.squeeze(bias, 0), [gates * units] * 2)
            direction = Direction(
                kind=kind,
                units=units,
                reverse=reverse,
                inputs=levels_of(builder, builder.squeeze(inputs, 0)),
                states=levels_of(builder, builder.squeeze(states, 0)),
                input_bias=halves[0],
                state_bias=halves[1],
            )
            states_SBU = scan(builder, direction, hidden, lengths)
        else:
            states_SBU = operator(builder, hidden, inputs, states, bias, lengths)
        builder.output("y", states_SBU, FLOAT, ["steps", "batch", units])
        return builder.build()

    def operator(builder: GraphBuilder, *given: Value) -> Value:
        options = {"linear_before_reset": 1} if kind == "GRU" else {}
        direction = "reverse" if reverse else "forward"
        (found,) = builder.op(kind, *given, hidden_size=units, direction=direction, **options)
        return builder.squeeze(found, 1)

    exact, rounded = (run(built(as_scan), x=hidden_SBD, lengths=lengths_B) for as_scan in (False, True))
    inside_SB = np.arange(12)[:, None] < lengths_B
    assert exact[inside_SB].std() > 0.1
    assert np.abs(rounded - exact)[inside_SB].max() < 0.05


def test_a_product_that_rows_of_8_bits_would_hurt_keeps_its_blocks(nano_model: HybridModel) -> None:
    changed = copy.deepcopy(nano_model)
    with torch.no_grad():
        changed.encoder.layers[1].attention_norm.weight[3] = 300.0
        changed.encoder.layers[1].attention.qkv.weight[:, 3] = 0.0
    (graph,) = build_models(changed, ("router",), precision="int8").values()
    assert products(graph, "MatMulNBits") == ["encoder.layers.1.attention.qkv.weight.q8"]
    (plain,) = build_models(nano_model, ("router",), precision="int8").values()
    assert products(plain, "MatMulNBits") == []
    assert len(products(plain, "MatMulIntegerToFloat")) > 8


def test_graphs_of_one_network_keep_the_same_products(nano_model: HybridModel) -> None:
    narrower, forms = Narrower("int8"), IntegerForms(32_000, limit=0.0)
    stored = {name: narrower.convert(each) for name, each in build_models(nano_model, ("router", "qa")).items()}
    for graph in stored.values():
        assert forms.convert(graph) == graph
    assert len(forms.kept) == len(set(forms.kept)) > 8


def test_decode_steps_and_the_output_layer_keep_their_blocks(nano_model: HybridModel) -> None:
    built = build_models(nano_model, ("generative_step", "hybrid_lm"), precision="int8")
    assert products(built["generative_step"], "MatMulIntegerToFloat") == []
    assert products(built["hybrid_lm"], "MatMulNBits") == ["embedding.weight.q8"]


def test_weights_are_stored_as_before_and_once(nano_model: HybridModel, tmp_path: Path) -> None:
    (graph,) = build_models(nano_model, ("qa",)).values()
    stored = Narrower("int8").convert(graph)
    for name, model in (("blocks", stored), ("integers", to_integers(stored))):
        (tmp_path / name).mkdir()
        write_graphs({"qa": model}, tmp_path / name)
    assert (tmp_path / "blocks/weights-000.bin").read_bytes() == (tmp_path / "integers/weights-000.bin").read_bytes()


@pytest.mark.parametrize("opset", [16, 17, 22])
def test_every_operator_set_has_an_integer_form(nano_model: HybridModel, opset: int) -> None:
    (graph,) = build_models(nano_model, ("qa",), precision="int8", opset=opset).values()
    (exact,) = build_models(nano_model, ("qa",), opset=opset).values()
    session = ort.InferenceSession(exact.SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = random_feeds(session, 32_000, (20,))
    reference = run(exact, **feeds)
    assert np.abs(run(graph, **feeds) - reference).max() < 0.5 * reference.std()
