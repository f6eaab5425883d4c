"""The key-value cache: one preallocated pool that the decoders' steps read and write in place.

    self_key_i, self_value_i     [slots,K,max_target,E]        what the answer attends to; grows by a position a step
    cross_key_i, cross_value_i   [slots,K,max_source,E]        what the source is to every layer; written once
    source_ids                   INT64 [slots,max_source]
    tokens, target_lengths, source_lengths, logits             one row a slot

K are the key and value heads, which groups of the H heads share; keys and values are FP32, or FP16 where the graphs
compute in it. Both decoders use the same buffers: the pointer
decoder has fewer layers, and keeps its copy keys, as wide as H / K caches, in the first cross-attention buffers that
its layers leave free. Memory is taken from the system page by page as it is written; past `warm_positions` it is given
back when nothing is being decoded.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .limits import EngineSettings, RowLimits
from .manifest import Manifest, Precision
from .protocol import Source
from .slots import Move


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheShape:
    """Dimensions of the pool."""

    slots: int
    layers: int
    heads: int
    """Key and value heads."""
    head_width: int
    max_source: int
    max_target: int
    vocabulary: int
    warm_positions: int
    dtype: type = np.float32
    """Of keys and values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """The buffers that one decoder's sequences fill."""

    own: tuple[str, ...]
    """Self-attention buffers."""

    cross: tuple[str, ...]
    """Buffers over the source, in the order of the prefill's outputs."""


def cache_shape(manifest: Manifest, settings: EngineSettings, limits: RowLimits) -> CacheShape:
    """Of a bundle's network, as the settings want it."""
    config = manifest.config
    return CacheShape(
        slots=settings.slots,
        layers=int(config["decoder_layers"]),
        heads=key_value_heads(config),
        head_width=int(config["d_model"]) // int(config["num_heads"]),
        max_source=limits.max_source_tokens,
        max_target=limits.max_target_tokens,
        vocabulary=limits.vocabulary,
        warm_positions=settings.warm_positions,
        dtype=np.float16 if manifest.precision == Precision.FP16 else np.float32,
    )


def key_value_heads(config: Mapping[str, Any]) -> int:
    """Of a network's decoders; bundles of before the field have as many as heads."""
    return int(config.get("num_kv_heads", config["num_heads"]))


def buffer_shapes(shape: CacheShape) -> dict[str, tuple[int, int, int, int]]:
    """Sizes [slots,K,positions,E] of all buffers of keys and values."""
    return {
        f"{kind}_{part}_{layer}": (shape.slots, shape.heads, positions, shape.head_width)
        for layer in range(shape.layers)
        for part in ("key", "value")
        for kind, positions in (("self", shape.max_target), ("cross", shape.max_source))
    }


class Pages:
    """A zeroed array whose memory exists only where it was written."""

    def __init__(self, shape: Sequence[int], dtype: type) -> None:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        self._memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            # A huge page (2 MB) spans several heads' positions: writing the first few would take all of them.
            self._memory.madvise(mmap.MADV_NOHUGEPAGE)
        self.array: np.ndarray = np.frombuffer(self._memory, dtype).reshape(shape)

    def discard(self, slot: int, first: int) -> None:
        """Give back the memory of a slot's positions from `first` on, in an array [slots,H,positions,E]."""
        slot_bytes, head_bytes, position_bytes, _ = self.array.strides
        for head in range(self.array.shape[1]):
            start = slot * slot_bytes + head * head_bytes
            begin = _page_up(start + first * position_bytes)
            length = _page_up(start + head_bytes - mmap.PAGESIZE + 1) - begin
            if length > 0:
                self._memory.madvise(mmap.MADV_DONTNEED, begin, length)


def _page_up(offset: int) -> int:
    return -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE


class CachePool:
    """The pool's memory. Which sequence is in which slot is SlotMap's business."""

    def __init__(self, shape: CacheShape) -> None:
        self.shape = shape
        self._pages: dict[str, Pages] = {}
        for name, size in buffer_shapes(shape).items():
            self._pages[name] = Pages(size, shape.dtype)
        self.buffers = {name: pages.array for name, pages in self._pages.items()}
        self.source_ids = Pages((shape.slots, shape.max_source), np.int64).array
        self.tokens = np.zeros((shape.slots, 1), np.int64)
        self.target_lengths = np.zeros(shape.slots, np.int32)
        self.source_lengths = np.zeros(shape.slots, np.int32)
        self.logits = np.zeros((shape.slots, shape.vocabulary), np.float32)
        self.totals = {
            "total_target": np.array(shape.max_target, np.int32),
            "total_source": np.array(shape.max_source, np.int32),
        }
        """Positions that the buffers have room for, which some graphs ask for."""

        self._deepest = np.zeros(shape.slots, np.int32)
        for buffer in self.buffers.values():
            buffer[:, :, : shape.warm_positions] = 0.0

    def write_source(
        self, slot: int, footprint: Footprint, cross: Sequence[np.ndarray], source: Source, first_token: int
    ) -> None:
        """Start a sequence in a slot.

        Args:
            slot: where.
            footprint: the decoder's buffers.
            cross: one array [H,S,E] for each of `footprint.cross`, S at least the source's length.
            source: what was encoded.
            first_token: what the decoder reads first.
        """
        length = source.cost
        for name, values_HSE in zip(footprint.cross, cross, strict=True):
            self.buffers[name][slot, :, :length] = values_HSE[:, :length]
        self.source_ids[slot, :length] = source.ids
        self.source_lengths[slot] = length
        self.target_lengths[slot] = 0
        self.tokens[slot] = first_token
        self._deepest[slot] = max(self._deepest[slot], length)

    def move(self, move: Move, footprint: Footprint) -> None:
        """Copy a sequence to another slot: only what it has filled."""
        source, target = move.source, move.target
        own, cross = self.target_lengths[source], self.source_lengths[source]
        for name in footprint.own:
            self.buffers[name][target, :, :own] = self.buffers[name][source, :, :own]
        for name in footprint.cross:
            self.buffers[name][target, :, :cross] = self.buffers[name][source, :, :cross]
        self.source_ids[target, :cross] = self.source_ids[source, :cross]
        for values in (self.tokens, self.target_lengths, self.source_lengths):
            values[target] = values[source]
        self._deepest[target] = max(self._deepest[target], own, cross)

    def reorder(self, slots: np.ndarray, parents: np.ndarray, footprint: Footprint) -> None:
        """Let every slot continue the answer of another: slots[i] that of slots[parents[i]], all at once.

        The sequences share one source and are of one age, so only the self-attention's positions are copied.
        """
        changed = np.flatnonzero(parents != np.arange(len(slots)))
        if not len(changed):
            return
        targets, sources = slots[changed], slots[parents[changed]]
        length = int(self.target_lengths[slots[0]])
        for name in footprint.own:
            # Indexing with an array copies, so no slot is read after it was written.
            self.buffers[name][targets, :, :length] = self.buffers[name][sources, :, :length]

    def cached_tokens(self, bounds: slice) -> int:
        """Positions of sources and answers that the slots in the bounds hold."""
        return int(self.source_lengths[bounds].sum()) + int(self.target_lengths[bounds].sum())

    def grow(self, bounds: slice) -> None:
        """Every slot in the bounds has written one more position."""
        lengths = self.target_lengths[bounds]
        lengths += 1
        np.maximum(self._deepest[bounds], lengths, out=self._deepest[bounds])

    def trim(self) -> Iterator[None]:
        """Give back the memory past the warm positions, one slot of one buffer at a time.

        Nothing in the pool may be in use while this is iterated. A slot that was left half done is done again.
        """
        for slot in np.flatnonzero(self._deepest > self.shape.warm_positions).tolist():
            for pages in self._pages.values():
                pages.discard(slot, self.shape.warm_positions)
                yield
            self._deepest[slot] = 0
