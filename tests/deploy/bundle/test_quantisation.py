"""`quantize`: smaller, near the original, and plain about what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from deploy.bundle.quantisation import quantize_file
from deploy.bundle.storage import load_graph, save_single
from deploy.graphs.blockwise import dequantize, quantize
from deploy.graphs.precision import Narrower, converter
from deploy.graphs.weights import restore_weights
from deploy.parity.feeds import TRIALS, random_feeds

ROOT = Path(__file__).parents[3]
SHRINKS_TO = {"fp16": 0.51, "int8": 0.35, "int4": 0.35}


@pytest.fixture(scope="module")
def graph(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The masked-token graph in one file."""
    path = tmp_path_factory.mktemp("graph") / "hybrid_lm.onnx"
    save_single(load_graph(nano_bundle / "graphs/hybrid_lm.onnx"), path)
    return path


@pytest.mark.parametrize("precision", list(SHRINKS_TO))
def test_a_graph_shrinks_and_stays_near(graph: Path, tmp_path: Path, precision: str) -> None:
    report = quantize_file(graph, tmp_path / "out.onnx", precision)
    assert (tmp_path / "out.onnx").stat().st_size == report.bytes_after
    assert report.bytes_after < SHRINKS_TO[precision] * report.bytes_before
    assert 0 < report.difference_in_standard_deviations <= report.tolerance


def test_fewer_bits_cost_more_accuracy(graph: Path, tmp_path: Path) -> None:
    reports = [quantize_file(graph, tmp_path / f"{each}.onnx", each) for each in SHRINKS_TO]
    differences = [each.largest_difference for each in reports]
    assert differences == sorted(differences)


def test_above_the_tolerance_nothing_is_written(graph: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at most 1e-06 are allowed"):
        quantize_file(graph, tmp_path / "out.onnx", "int8", tolerance=1e-6)
    assert not (tmp_path / "out.onnx").exists()


def test_four_bits_of_the_wrong_weights_are_above_the_tolerance(
    graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: the two weights of every byte of one matrix change places."""
    convert = Narrower.convert

    def swapped(self: Narrower, model: onnx.ModelProto) -> onnx.ModelProto:
        converted = convert(self, model)
        stored = next(each for each in converted.graph.initializer if each.name.endswith(".q4"))
        bytes_NBK = numpy_helper.to_array(stored)
        stored.CopyFrom(numpy_helper.from_array((bytes_NBK << 4) | (bytes_NBK >> 4), stored.name))
        return converted

    monkeypatch.setattr(Narrower, "convert", swapped)
    with pytest.raises(ValueError, match=r"int4: .* at most 3 are allowed"):
        quantize_file(graph, tmp_path / "out.onnx", "int4")


def test_a_quantised_graph_is_not_quantised_again(graph: Path, tmp_path: Path) -> None:
    quantize_file(graph, tmp_path / "once.onnx", "int8")
    with pytest.raises(ValueError, match="quantised already"):
        quantize_file(tmp_path / "once.onnx", tmp_path / "twice.onnx", "int8")


def test_the_input_is_never_overwritten(graph: Path) -> None:
    with pytest.raises(ValueError, match="is the input"):
        quantize_file(graph, graph, "int8")


@pytest.mark.parametrize("name", ["hybrid_lm", "router", "qa", "encoder", "generative_step", "pointer_step"])
def test_eight_bits_compute_with_exactly_the_weights_they_are_restored_to(nano_bundle: Path, name: str) -> None:
    """The quantised graph against the float32 graph of its own dequantised weights: only activations are rounded."""
    model = load_graph(nano_bundle / f"graphs/{name}.onnx")
    converted = Narrower("int8").convert(model)
    restored = restore_weights([converted])
    for tensor in model.graph.initializer:
        key = tensor.name.removesuffix(".T")
        if key in restored and tensor.data_type == TensorProto.FLOAT:
            array = restored[key].T if tensor.name.endswith(".T") else restored[key]
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))
    dequantised, quantised = (new_session_of(each) for each in (model, converted))
    for lengths in TRIALS:
        feeds = random_feeds(dequantised, 32_000, lengths)
        for expected, found in zip(dequantised.run(None, feeds), quantised.run(None, feeds), strict=True):
            # The pointer's log probabilities lie at its floor, but for a few.
            live = expected > expected.min() + 0.1
            spread = max(float(expected[live].std()), 0.1)
            assert np.sqrt(np.square(found - expected)[live].mean()) < 0.1 * spread
            assert np.abs(found - expected).max() < 0.5 * spread


def new_session_of(model: onnx.ModelProto):
    import onnxruntime as ort

    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def test_the_embedding_is_stored_once(nano_bundle: Path) -> None:
    converted = Narrower("int8").convert(load_graph(nano_bundle / "graphs/hybrid_lm.onnx"))
    large = [each.name for each in converted.graph.initializer if len(each.raw_data) > 1_000_000]
    assert large == ["embedding.weight.q8"]


def test_every_matrix_is_quantised_and_small_heads_are_not(nano_bundle: Path) -> None:
    converted = Narrower("int8").convert(load_graph(nano_bundle / "graphs/router.onnx"))
    plain = [node.input[1] for node in converted.graph.node if node.op_type == "MatMul"]
    assert all(name in {each.name for each in converted.graph.initializer} for name in plain)
    sizes = {each.name: int(np.prod(each.dims)) for each in converted.graph.initializer}
    assert max(sizes[name] for name in plain) < 1024


def test_dequantised_weights_are_what_the_bytes_say() -> None:
    weight_NK = np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)
    stored = quantize(weight_NK, 8)
    by_hand = (stored.values.astype(np.float32) - 128) * stored.scales.astype(np.float32)[..., None]
    assert np.array_equal(dequantize(stored), by_hand.reshape(3, 64))


def test_weights_beyond_float16_are_refused() -> None:
    tensor = numpy_helper.from_array(np.full((64, 64), 1e6, np.float32), "w.T")
    node = onnx.helper.make_node("MatMul", ["x", "w.T"], ["y"])
    info = [onnx.helper.make_tensor_value_info(each, TensorProto.FLOAT, ["batch", 64]) for each in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "large", info[:1], info[1:], [tensor]))
    with pytest.raises(ValueError, match=r"w\.T holds 1e\+06, more than float16's 65504"):
        converter("fp16")(model)


def test_the_script_reports_and_fails_with_status_1(graph: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "deploy/quantize.py", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    paths = ["--input_model", str(graph), "--output_model", str(tmp_path / "out.onnx"), "--precision", "int8"]
    done = run(*paths, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["operators"]["MatMulIntegerToFloat"] > 10
    failed = run("--input_model", str(tmp_path / "absent.onnx"), "--output_model", str(tmp_path / "out2.onnx"))
    assert failed.returncode == 1
    assert "absent.onnx does not exist" in failed.stderr
    assert run("--input_model", str(graph)).returncode == 2
