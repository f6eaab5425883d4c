"""The executor for CPUs: ONNX Runtime sessions on one cache pool in this process's memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .beams import BeamSearch
from .cache import CachePool, cache_shape
from .decoder import Decoder
from .encoder import Encoder
from .executor import Decoding, Encoded, Step
from .limits import EngineSettings, RowLimits
from .manifest import Manifest
from .protocol import FinishReason, Source, Task
from .rules import TokenRules
from .sampling import Sampler, choose
from .slots import SIDES, Move


class CpuExecutor:
    """Sessions, buffers and moves."""

    def __init__(
        self, bundle: Path, manifest: Manifest, settings: EngineSettings, limits: RowLimits, rules: TokenRules
    ) -> None:
        """Load the graphs and allocate the cache. Raises BundleError where a graph is missing or cannot be loaded."""
        config = manifest.config
        self._rules, self._first_token = rules, int(config["bos_token_id"])
        self.pool = CachePool(cache_shape(manifest, settings, limits))
        self.encoder = Encoder(bundle, manifest, threads=settings.threads)
        self.decoders = {
            task: Decoder(name, bundle, manifest, self.pool, SIDES[task], threads=settings.threads, copies=copies)
            for task, name, copies in ((Task.GENERATION, "generative", False), (Task.SUMMARY, "pointer", True))
        }
        self._footprints = {each.side: each.footprint for each in self.decoders.values()}

    def encode(self, sources: Sequence[Source]) -> Encoded:
        """Encode sources as one batch."""
        memory_BSD, routes_B3 = self.encoder.encode(sources)
        return Encoded(positions=memory_BSD.shape[1], routes_B3=routes_B3, memory=memory_BSD)

    def extract(self, encoded: Encoded, indices: Sequence[int], sources: Sequence[Source]) -> list[np.ndarray]:
        """Emissions of some of the sources."""
        return self.encoder.extract(_memory_of(encoded, indices), sources)

    def prepare(self, task: Task, encoded: Encoded, indices: Sequence[int]) -> list[np.ndarray]:
        """Run the task's prefill."""
        return self.decoders[task].prefill(_memory_of(encoded, indices))

    def interrupt(self) -> None:
        """Let the encoder's run end; what follows it is short."""
        self.encoder.interrupt()

    def start(
        self, task: Task, prepared: Sequence[np.ndarray], indices: Sequence[int], rows: Sequence[Decoding]
    ) -> None:
        """Write what the task's prefill gave into the rows' slots."""
        decoder = self.decoders[task]
        for index, row in zip(indices, rows, strict=True):
            source = [each_BHSE[index] for each_BHSE in prepared]
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

    def _advance(self, decoder: Decoder, search: BeamSearch, slots: np.ndarray) -> FinishReason:
        """Choose the beams' tokens, and let every slot continue the beam that it stands for now."""
        chosen = search.advance(self.pool.logits[slots])
        self.pool.reorder(slots, chosen.parents, decoder.footprint)
        self.pool.tokens[slots, 0] = chosen.tokens
        return chosen.finish_reason


def _memory_of(encoded: Encoded, indices: Sequence[int]) -> np.ndarray:
    """FP32 [B,S,D] at some indices (rising), copied only where that are not all."""
    memory_BSD: np.ndarray = encoded.memory
    return memory_BSD if len(indices) == len(memory_BSD) else memory_BSD[indices]
