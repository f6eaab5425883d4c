"""Rows on their way through the engine, and the batches whose sinks they report to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from .beams import BeamSearch
from .protocol import BatchNews, FinishReason, PrefillTime, Row, RowTimings, RowUpdate, Sink, Task
from .sampling import Sampler, TokenRules
from .slots import Lane


@dataclass(slots=True, eq=False)
class LiveBatch:
    """A submitted batch: where its news goes, and that of this step."""

    sink: Sink
    updates: list[RowUpdate] = field(default_factory=list)
    prefills: list[PrefillTime] = field(default_factory=list)

    def take_news(self) -> BatchNews | None:
        """What has not been told yet; None where that is nothing."""
        if not self.updates and not self.prefills:
            return None
        news = BatchNews(updates=self.updates, prefills=tuple(self.prefills))
        self.updates, self.prefills = [], []
        return news


@dataclass(slots=True, eq=False)
class LiveRow:
    """A row between submission and its last update."""

    row: Row
    task: Task
    batch: LiveBatch
    search: Sampler | BeamSearch
    lanes: list[Lane[LiveRow]] = field(default_factory=list)
    route: np.ndarray | None = None
    finished: bool = False

    _sent: int = 0
    _routed: bool = False
    _submitted_s: float = field(default_factory=time.perf_counter)
    _admitted_s: float | None = None
    _decoding_s: float | None = None

    @classmethod
    def start(cls, row: Row, task: Task, batch: LiveBatch, rules: TokenRules) -> LiveRow:
        """A row that has just been submitted."""
        search = BeamSearch if row.sampling.num_beams > 1 else Sampler
        return cls(row, task, batch, search(row.sampling, rules))

    @property
    def slots_needed(self) -> int:
        """Slots it takes while it is decoded: none for an answer that is read off the encoder."""
        return 0 if self.task is Task.QA else self.row.sampling.num_beams

    def admit(self) -> None:
        """Its encoder pass begins."""
        self._admitted_s = time.perf_counter()

    def start_decoding(self, lanes: list[Lane[LiveRow]]) -> None:
        """Its source is in the cache."""
        self._decoding_s = time.perf_counter()
        self.lanes = lanes

    def report(self) -> bool:
        """Leave news for the sink, if the row streams and has any; whether it did."""
        has_news = self.row.stream and len(self.search.tokens) > self._sent
        if has_news:
            self._post(FinishReason.RUNNING)
        return has_news

    def finish(self, reason: FinishReason, emissions: np.ndarray | None = None) -> None:
        """Leave the last update."""
        self.finished = True
        self._post(reason, self._timings(), emissions)

    def _post(
        self, reason: FinishReason, timings: RowTimings | None = None, emissions: np.ndarray | None = None
    ) -> None:
        tokens = np.array(self.search.tokens[self._sent :], np.int32)
        self._sent += len(tokens)
        route = None if self._routed else self.route
        self._routed = self._routed or route is not None
        self.batch.updates.append(
            RowUpdate(
                row_id=self.row.row_id,
                tokens=tokens,
                finish_reason=reason,
                task=self.task,
                timings=timings,
                route=route,
                emissions=emissions,
            )
        )

    def _timings(self) -> RowTimings:
        now_s = time.perf_counter()
        admitted_s = now_s if self._admitted_s is None else self._admitted_s
        decoding_s = now_s if self._decoding_s is None else self._decoding_s
        return RowTimings(
            queue_s=admitted_s - self._submitted_s,
            prefill_s=decoding_s - admitted_s,
            decode_s=now_s - decoding_s,
        )
