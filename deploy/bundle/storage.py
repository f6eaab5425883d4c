"""Graphs on disk: every tensor stored once for all graphs, in shards beside them.

    graphs/router.onnx ──┐                     ┌── graphs/weights-000.bin
    graphs/qa.onnx ──────┼── offset, length ───┼── graphs/weights-001.bin
    graphs/encoder.onnx ─┘                     └── …

Two tensors of equal bytes are one extent of a shard. Paths are relative to the graph's own folder: ONNX Runtime refuses
any other.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import onnx
from onnx import TensorProto, external_data_helper

from deploy.bundle.replacement import staging_beside

SHARD_BYTES = 45_000_000
"""Largest shard. A single tensor of more gets a shard of its own."""

INLINE_BYTES = 1024
"""Smaller tensors stay inside the graph's file."""

PAGE = 4096
"""Alignment of tensors of a page and more, so that ONNX Runtime maps the file in place of reading it."""

LINE = 64
"""Alignment of smaller tensors."""

LARGEST_SINGLE_FILE = 2_000_000_000
"""Protocol Buffers stop at 2 GiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Extent:
    """Where a tensor's bytes are."""

    shard: str
    offset: int
    length: int


@dataclass(slots=True)
class ShardWriter:
    """Appends tensors to shards in a folder, each content once."""

    folder: Path
    _extents: dict[bytes, Extent] = field(default_factory=dict, repr=False)
    _shard: int = -1
    _filled: int = SHARD_BYTES

    def store(self, content: bytes) -> Extent:
        """Where these bytes are stored, now or from before."""
        digest = hashlib.sha256(content).digest()
        if digest not in self._extents:
            self._extents[digest] = self._append(content)
        return self._extents[digest]

    def _append(self, content: bytes) -> Extent:
        alignment = PAGE if len(content) >= PAGE else LINE
        offset = -(-self._filled // alignment) * alignment
        if offset + len(content) > SHARD_BYTES:
            self._shard, self._filled, offset = self._shard + 1, 0, 0
        name = f"weights-{self._shard:03d}.bin"
        with (self.folder / name).open("ab") as stream:
            stream.write(bytes(offset - self._filled) + content)
        self._filled = offset + len(content)
        return Extent(shard=name, offset=offset, length=len(content))


def write_graphs(models: Mapping[str, onnx.ModelProto], folder: Path) -> dict[str, tuple[str, ...]]:
    """Write `NAME.onnx` for every graph, and their shared weights; returns the shards that each graph reads.

    Raises onnx.checker.ValidationError where a file is not valid.
    """
    writer = ShardWriter(folder)
    shards: dict[str, tuple[str, ...]] = {}
    for name, model in models.items():
        used: dict[str, None] = {}
        written = onnx.ModelProto()
        written.CopyFrom(model)
        for tensor in written.graph.initializer:
            if len(tensor.raw_data) >= INLINE_BYTES:
                extent = writer.store(tensor.raw_data)
                _point_to(tensor, extent)
                used[extent.shard] = None
        shards[name] = tuple(used)
        (folder / f"{name}.onnx").write_bytes(written.SerializeToString(deterministic=True))
    for name in models:
        onnx.checker.check_model(str(folder / f"{name}.onnx"))
    return shards


def save_single(model: onnx.ModelProto, path: Path) -> list[Path]:
    """Write one graph to `path`, its weights inside, or beside it as `NAME.onnx.data` where they would not fit.

    What stood there stays until the new files are whole. Returns the files written. Raises ValueError
    where `path` is a folder or a device.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no file that could be replaced: choose another output")
    data = path.with_name(path.name + ".data")
    external = model.ByteSize() > LARGEST_SINGLE_FILE
    with staging_beside(path) as staging:
        onnx.save_model(
            model,
            str(staging / path.name),
            save_as_external_data=external,
            location=data.name,
            size_threshold=INLINE_BYTES,
        )
        if external:
            # Never a graph beside another one's weights: for a moment there is none.
            path.unlink(missing_ok=True)
            (staging / data.name).replace(data)
        (staging / path.name).replace(path)
        if not external:
            data.unlink(missing_ok=True)
    return [path, data] if external else [path]


def load_graph(path: Path) -> onnx.ModelProto:
    """A graph with its weights. Raises ValueError where the file is missing or no ONNX graph."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give --input_model an ONNX file")
    try:
        model = onnx.load_model(str(path))
    except FileNotFoundError as error:
        raise ValueError(f"{error.filename or path} does not exist: give --input_model an ONNX file") from None
    except Exception as error:  # protobuf's DecodeError and onnx's own checks share no base class
        raise ValueError(f"{path} is not a readable ONNX graph: {error}") from None
    if not model.graph.node:
        raise ValueError(f"{path} is not a readable ONNX graph: it has no nodes")
    return model


def operators_of(model: onnx.ModelProto, kinds: tuple[str, ...]) -> dict[str, int]:
    """How often each of the given operators occurs, those that do not left out."""
    counts = Counter(node.op_type for node in model.graph.node)
    return {kind: counts[kind] for kind in kinds if counts[kind]}


def _point_to(tensor: TensorProto, extent: Extent) -> None:
    external_data_helper.set_external_data(tensor, extent.shard, offset=extent.offset, length=extent.length)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
