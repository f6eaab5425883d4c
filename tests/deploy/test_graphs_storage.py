"""Shards: every tensor once, aligned, and found again by ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from deploy.graphs import storage
from deploy.graphs.builder import GraphBuilder
from deploy.graphs.storage import load_graph, save_single, write_graphs
from deploy.runner import new_session

WIDTH = 64


def scaled(name: str, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A graph that multiplies its input by all of its weights, one after the other."""
    builder = GraphBuilder(name=name, weights=weights, opset=18, fusion=False)
    value = builder.input("x", TensorProto.FLOAT, ["batch", WIDTH])
    for key in weights:
        value = builder.matmul(value, builder.weight(key))
    builder.output("y", value, TensorProto.FLOAT, ["batch", WIDTH])
    return builder.build()


@pytest.fixture
def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {key: random.standard_normal((WIDTH, WIDTH), dtype=np.float32) / 8 for key in ("a", "b", "c")}


def test_shared_tensors_are_stored_once(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    models = {"one": scaled("one", weights), "two": scaled("two", {"renamed": weights["a"], "c": weights["c"]})}
    shards = write_graphs(models, tmp_path)
    assert shards == {"one": ("weights-000.bin",), "two": ("weights-000.bin",)}
    assert (tmp_path / "weights-000.bin").stat().st_size == 3 * weights["a"].nbytes


def test_graphs_compute_the_same_from_shards(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    write_graphs({"one": scaled("one", weights)}, tmp_path)
    x = np.random.default_rng(1).standard_normal((3, WIDTH), dtype=np.float32)
    y = new_session(tmp_path / "one.onnx").run(None, {"x": x})[0]
    np.testing.assert_allclose(y, x @ weights["a"] @ weights["b"] @ weights["c"], atol=1e-4)


def test_full_shards_are_closed_and_tensors_start_on_pages(
    tmp_path: Path, weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "SHARD_BYTES", 2 * weights["a"].nbytes)
    shards = write_graphs({"one": scaled("one", weights)}, tmp_path)
    assert shards["one"] == ("weights-000.bin", "weights-001.bin")
    model = onnx.load_model(str(tmp_path / "one.onnx"), load_external_data=False)
    places = [{each.key: each.value for each in tensor.external_data} for tensor in model.graph.initializer]
    assert [int(place["offset"]) for place in places] == [0, weights["a"].nbytes, 0]
    assert all(int(place["offset"]) % storage.PAGE == 0 for place in places)


def test_two_exports_are_equal_byte_for_byte(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    for folder in ("first", "second"):
        (tmp_path / folder).mkdir()
        write_graphs({"one": scaled("one", weights)}, tmp_path / folder)
    for name in ("one.onnx", "weights-000.bin"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_one_graph_in_one_file_comes_back(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    model = scaled("one", weights)
    assert save_single(model, tmp_path / "deep" / "one.onnx") == [tmp_path / "deep" / "one.onnx"]
    assert load_graph(tmp_path / "deep" / "one.onnx") == model


def test_a_graph_too_large_for_one_file_gets_a_second(
    tmp_path: Path, weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "LARGEST_SINGLE_FILE", 1000)
    written = save_single(scaled("one", weights), tmp_path / "one.onnx")
    assert [path.name for path in written] == ["one.onnx", "one.onnx.data"]
    assert new_session(written[0]).get_inputs()[0].name == "x"


def test_an_old_graph_outlives_a_write_that_fails(
    tmp_path: Path, weights: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = scaled("old", weights)
    save_single(old, tmp_path / "one.onnx")

    def fill_the_disk(model: onnx.ModelProto, path: str, **_: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save_model", fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        save_single(scaled("new", weights), tmp_path / "one.onnx")
    assert load_graph(tmp_path / "one.onnx") == old
    assert [path.name for path in tmp_path.iterdir()] == ["one.onnx"]


def test_what_is_no_file_is_not_replaced(tmp_path: Path, weights: dict[str, np.ndarray]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is no file"):
        save_single(scaled("one", weights), tmp_path / "pipe")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x08"])
def test_what_is_no_graph_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.onnx").write_bytes(content)
    with pytest.raises(ValueError, match=r"broken\.onnx is not a readable ONNX graph"):
        load_graph(tmp_path / "broken.onnx")


def test_a_missing_graph_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent\.onnx does not exist"):
        load_graph(tmp_path / "absent.onnx")
