"""The executor for any device: an encoder, two decoders, and one pool of caches that all sequences live in.

What it does with them is the same wherever they are; cpu_executor.py and cuda_executor.py make them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from .beams import BeamSearch
from .cache import Footprint
from .executor import Decoding, Encoded, Step
from .protocol import FinishReason, Source, Task
from .rules import TokenRules
from .sampling import Sampler, choose
from .slots import Move, Side


class Pool(Protocol):
    """Buffers of all slots. What is small stands in the host's memory: one row a slot."""

    tokens: np.ndarray
    """INT64 [slots,1], what each reads next."""

    logits: np.ndarray
    """FP32 [slots,V], as the latest step left them."""

    def write_source(
        self, slot: int, footprint: Footprint, cross: Sequence[Any], source: Source, first_token: int
    ) -> None:
        """Start a sequence in a slot; `cross` is one row of what a prefill gave for each cross-attention buffer."""

    def move(self, move: Move, footprint: Footprint) -> None:
        """Copy a sequence to another slot."""

    def reorder(self, slots: np.ndarray, parents: np.ndarray, footprint: Footprint) -> None:
        """Let slots[i] continue the answer of slots[parents[i]], all at once."""

    def cached_tokens(self, bounds: slice) -> int:
        """Positions that the slots in the bounds hold."""

    def grow(self, bounds: slice) -> None:
        """Every slot in the bounds has written one more position."""

    def trim(self) -> Iterator[None]:
        """Give memory back while nothing is in use."""


class SourceEncoder(Protocol):
    """The graphs that read sources. `memory` is whatever the decoders' prefill takes."""

    def encode(self, sources: Sequence[Source]) -> tuple[Any, np.ndarray]:
        """Memory of sources that are encoded as one batch, and P(task) FP32 [B,3]."""

    def positions(self, memory: Any) -> int:
        """What each source was padded to."""

    def select(self, memory: Any, indices: Sequence[int]) -> Any:
        """The memory of the sources at some indices, rising."""

    def extract(self, memory: Any, sources: Sequence[Source]) -> list[np.ndarray]:
        """Scores of the tags O, B, I of every source position: FP32 [S,3] for each row."""

    def interrupt(self) -> None:
        """Let the run under way fail."""


class StepDecoder(Protocol):
    """One decoder's graphs."""

    side: Side
    footprint: Footprint

    def prefill(self, memory: Any) -> Sequence[Any]:
        """What the step reads of encoded sources: one array of rows for each of `footprint.cross`."""

    def step(self, bounds: slice) -> np.ndarray:
        """Decode one token for every slot of this side; returns the pool's logits FP32 [N,V]."""


class PooledExecutor:
    """Sessions, buffers and moves."""

    def __init__(
        self,
        *,
        pool: Pool,
        encoder: SourceEncoder,
        decoders: Mapping[Task, StepDecoder],
        rules: TokenRules,
        first_token: int,
    ) -> None:
        """`first_token`: what a decoder reads first."""
        self.pool, self.encoder, self.decoders = pool, encoder, decoders
        self._rules, self._first_token = rules, first_token
        self._footprints = {each.side: each.footprint for each in decoders.values()}

    def encode(self, sources: Sequence[Source]) -> Encoded:
        """Encode sources as one batch."""
        memory, routes_B3 = self.encoder.encode(sources)
        return Encoded(positions=self.encoder.positions(memory), routes_B3=routes_B3, memory=memory)

    def extract(self, encoded: Encoded, indices: Sequence[int], sources: Sequence[Source]) -> list[np.ndarray]:
        """Emissions of some of the sources."""
        return self.encoder.extract(self.encoder.select(encoded.memory, indices), sources)

    def prepare(self, task: Task, encoded: Encoded, indices: Sequence[int]) -> Sequence[Any]:
        """Run the task's prefill."""
        return self.decoders[task].prefill(self.encoder.select(encoded.memory, indices))

    def interrupt(self) -> None:
        """Let the encoder's run end; what follows it is short."""
        self.encoder.interrupt()

    def start(self, task: Task, prepared: Sequence[Any], indices: Sequence[int], rows: Sequence[Decoding]) -> None:
        """Write what the task's prefill gave into the rows' slots."""
        decoder = self.decoders[task]
        for index, row in zip(indices, rows, strict=True):
            source = [each[index] for each in prepared]
            for slot in row.slots:
                self.pool.write_source(slot, decoder.footprint, source, row.source, self._first_token)

    def step(self, task: Task, rows: Sequence[Decoding], bounds: slice) -> Step:
        """Run the task's step, and choose every sequence's next token from its scores."""
        decoder, cached_tokens = self.decoders[task], self.pool.cached_tokens(bounds)
        scores_NV = decoder.step(bounds)
        self.pool.grow(bounds)
        samplers: list[Sampler | None] = [None] * len(scores_NV)
        for row in rows:
            if isinstance(row.search, Sampler):
                samplers[row.slots[0] - bounds.start] = row.search
        tokens_N = choose(scores_NV, samplers, self._rules).tokens_N
        self.pool.tokens[bounds, 0] = tokens_N
        tokens = tokens_N.tolist()
        reasons = [
            row.search.accept(tokens[row.slots[0] - bounds.start])
            if isinstance(row.search, Sampler)
            else self._advance(decoder, row.search, np.array(row.slots))
            for row in rows
        ]
        return Step(finish_reasons=reasons, cached_tokens=cached_tokens)

    def move(self, moves: Iterable[Move]) -> None:
        """Copy what sequences have filled."""
        for move in moves:
            self.pool.move(move, self._footprints[move.side])

    def trim(self) -> Iterator[None]:
        """Give back the memory past the warm positions."""
        return self.pool.trim()

    def _advance(self, decoder: StepDecoder, search: BeamSearch, slots: np.ndarray) -> FinishReason:
        """Choose the beams' tokens, and let every slot continue the beam that it stands for now."""
        chosen = search.advance(self.pool.logits[slots])
        self.pool.reorder(slots, chosen.parents, decoder.footprint)
        self.pool.tokens[slots, 0] = chosen.tokens
        return chosen.finish_reason
