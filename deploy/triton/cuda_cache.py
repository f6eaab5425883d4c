"""The cache pool on a CUDA device: the buffers of cache.py in float16, and a copy there of what a step reads besides.

Tokens and lengths, a few bytes a slot, are the host's and go over before every step; its logits come back behind it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime as ort

from . import cuda_runtime as cuda
from .cache import CacheShape, Footprint, buffer_shapes
from .protocol import Source
from .slots import Move


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """One row of an array on the device."""

    address: int
    positions: int
    """Of [K,positions,E]."""


class DeviceArray:
    """An array on the device, [B,…]."""

    def __init__(self, value: ort.OrtValue) -> None:
        self.value = value
        self.shape = tuple(value.shape())
        self._row_bytes = math.prod(self.shape[1:]) * np.dtype(np.float16).itemsize

    def __getitem__(self, index: int) -> DeviceRow:
        return DeviceRow(self.value.data_ptr() + index * self._row_bytes, self.shape[2])

    def select(self, indices: Sequence[int]) -> DeviceArray:
        """The rows at some indices, copied only where that are not all."""
        if len(indices) == self.shape[0]:
            return self
        chosen = DeviceArray(device_value((len(indices), *self.shape[1:]), np.float16))
        for row, index in enumerate(indices):
            target = chosen.value.data_ptr() + row * self._row_bytes
            cuda.copy(target, self.value.data_ptr() + index * self._row_bytes, self._row_bytes)
        cuda.synchronise()
        return chosen


def device_value(shape: Sequence[int], dtype: type) -> ort.OrtValue:
    """Memory of the device, as it is."""
    return ort.OrtValue.ortvalue_from_shape_and_type(list(shape), dtype, "cuda", 0)


class DevicePool:
    """The pool's memory."""

    def __init__(self, shape: CacheShape) -> None:
        """Raises ValueError, with the numbers, where the device has not the memory."""
        self.shape = shape
        shapes = buffer_shapes(shape)
        self._itemsize = np.dtype(np.float16).itemsize
        wanted = sum(map(math.prod, shapes.values())) * self._itemsize
        if wanted > (free := cuda.free_memory()):
            fits = int(shape.slots * free / wanted)
            raise ValueError(
                f"the cache of {shape.slots} slots needs {wanted / 1e9:.1f} GB of the device, and {free / 1e9:.1f} are "
                f"free: at most {fits} slots fit, or lower max_source_tokens"
            )
        self.buffers = {name: device_value(size, np.float16) for name, size in shapes.items()}
        for name, size in shapes.items():
            cuda.fill_zero(self.buffers[name].data_ptr(), math.prod(size) * self._itemsize)
        self.host: dict[str, np.ndarray] = {
            "tokens": np.zeros((shape.slots, 1), np.int64),
            "target_lengths": np.zeros(shape.slots, np.int32),
            "source_lengths": np.zeros(shape.slots, np.int32),
            "source_ids": np.zeros((shape.slots, shape.max_source), np.int64),
            "logits": np.zeros((shape.slots, shape.vocabulary), np.float32),
        }
        self.device = {name: device_value(each.shape, each.dtype.type) for name, each in self.host.items()}
        for name, each in self.host.items():
            cuda.copy(self.device[name].data_ptr(), each.ctypes.data, each.nbytes)
        self.tokens, self.logits = self.host["tokens"], self.host["logits"]
        self._targets, self._sources = self.host["target_lengths"], self.host["source_lengths"]
        self.totals = {
            "total_target": np.array(shape.max_target, np.int32),
            "total_source": np.array(shape.max_source, np.int32),
        }
        cuda.synchronise()

    def address(self, name: str, slot: int) -> tuple[int, tuple[int, ...], type]:
        """Where a slot's part of a buffer or array begins, the shape of such a part, and its type."""
        value = self.buffers.get(name) or self.device[name]
        part = tuple(value.shape()[1:])
        dtype = np.float16 if name in self.buffers else self.host[name].dtype.type
        return value.data_ptr() + slot * math.prod(part) * np.dtype(dtype).itemsize, part, dtype

    def send(self, bounds: slice) -> None:
        """Copy what a step reads of the slots in the bounds to the device."""
        for name in ("tokens", "target_lengths", "source_lengths"):
            rows = self.host[name][bounds]
            cuda.copy(self.address(name, bounds.start)[0], rows.ctypes.data, rows.nbytes)
        cuda.synchronise()

    def fetch_logits(self, bounds: slice) -> np.ndarray:
        """Copy the slots' scores to the host: FP32 [N,V]."""
        rows = self.logits[bounds]
        cuda.copy(rows.ctypes.data, self.address("logits", bounds.start)[0], rows.nbytes)
        return rows

    def write_source(
        self, slot: int, footprint: Footprint, cross: Sequence[DeviceRow], source: Source, first_token: int
    ) -> None:
        """Start a sequence in a slot; `cross` is one row [K,S,E] of the prefill's outputs for each cross buffer."""
        length = source.cost
        for name, row in zip(footprint.cross, cross, strict=True):
            self._copy(name, slot, row.address, row.positions, length)
        ids = self.host["source_ids"]
        ids[slot, :length] = source.ids
        cuda.copy(self.address("source_ids", slot)[0], ids[slot].ctypes.data, ids[slot].nbytes)
        self._sources[slot], self._targets[slot], self.tokens[slot] = length, 0, first_token

    def move(self, move: Move, footprint: Footprint) -> None:
        """Copy a sequence to another slot: only what it has filled."""
        source, target = move.source, move.target
        own, cross = int(self._targets[source]), int(self._sources[source])
        for names, length in ((footprint.own, own), (footprint.cross, cross)):
            for name in names:
                address, (_, positions, _), _ = self.address(name, source)
                self._copy(name, target, address, positions, length)
        for name in ("tokens", "target_lengths", "source_lengths", "source_ids"):
            self.host[name][target] = self.host[name][source]
        ids = self.host["source_ids"][target]
        cuda.copy(self.address("source_ids", target)[0], ids.ctypes.data, ids.nbytes)

    def reorder(self, slots: np.ndarray, parents: np.ndarray, footprint: Footprint) -> None:
        """Let slots[i] continue the answer of slots[parents[i]]: copied aside first, so that none is read when written.

        The sequences share one source and are of one age, so only the self-attention's positions are copied.
        """
        changed = np.flatnonzero(parents != np.arange(len(slots)))
        length = int(self._targets[slots[0]])
        for name in footprint.own if len(changed) else ():
            _, (heads, positions, width), _ = self.address(name, 0)
            aside = device_value((len(changed), heads, length, width), np.float16)
            size = length * width * self._itemsize
            pieces = [aside.data_ptr() + row * heads * size for row in range(len(changed))]
            for piece, index in zip(pieces, changed, strict=True):
                address = self.address(name, int(slots[parents[index]]))[0]
                cuda.copy_strided(piece, size, address, positions * width * self._itemsize, size, heads)
            for piece, index in zip(pieces, changed, strict=True):
                self._copy(name, int(slots[index]), piece, length, length)
            cuda.synchronise()

    def cached_tokens(self, bounds: slice) -> int:
        """Positions of sources and answers that the slots in the bounds hold."""
        return int(self._sources[bounds].sum()) + int(self._targets[bounds].sum())

    def grow(self, bounds: slice) -> None:
        """Every slot in the bounds has written one more position."""
        self._targets[bounds] += 1

    def trim(self) -> Iterator[None]:
        """Nothing: the device's memory is the pool's for good."""
        return iter(())

    def _copy(self, name: str, slot: int, source: int, source_positions: int, length: int) -> None:
        """Copy the first `length` positions of [K,source_positions,E] into a slot."""
        address, (heads, positions, width), _ = self.address(name, slot)
        step = width * self._itemsize
        cuda.copy_strided(address, positions * step, source, source_positions * step, length * step, heads)
