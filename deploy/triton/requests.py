"""Rows on their way through the engine, and the batches whose sinks they report to."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np

from .beams import BeamSearch
from .protocol import BatchNews, FinishReason, PrefillTime, Row, RowTimings, RowUpdate, Sink, Source, Task
from .rules import TokenRules
from .sampling import Sampler
from .slots import SequenceSlot


@dataclass(slots=True, eq=False)
class LiveBatch:
    """A submitted batch: where its news goes, and that of this step."""

    sink: Sink
    row_ids: tuple[int, ...]
    updates: list[RowUpdate] = field(default_factory=list)
    prefills: list[PrefillTime] = field(default_factory=list)

    def take_news(self) -> BatchNews:
        """What has not been told yet."""
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
    sequences: list[SequenceSlot[LiveRow]] = field(default_factory=list)
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
    def row_id(self) -> int:
        """The client's."""
        return self.row.row_id

    @property
    def source(self) -> Source:
        """What it is made from."""
        return self.row.source

    @property
    def cost(self) -> int:
        """Positions that the encoder computes for it."""
        return self.row.source.cost

    @property
    def slots(self) -> list[int]:
        """Its slots, in the order of its beams."""
        return [each.slot for each in self.sequences]

    @property
    def slots_needed(self) -> int:
        """Slots it takes while it is decoded: none for an answer that is read off the encoder."""
        return 0 if self.task is Task.QA else self.row.sampling.num_beams

    def admit(self, now_s: float) -> None:
        """Its encoder pass begins."""
        self._admitted_s = now_s

    def send_to(self, route: np.ndarray) -> None:
        """A row whose task the router is to choose gets it from its route (FP32 [3])."""
        if self.task is Task.AUTO:
            self.route, self.task = route, routed(self.task, route)

    def withdraw(self) -> None:
        """It leaves before its source is in the cache: its encoder pass counts as never begun."""
        if self._decoding_s is None:
            self._admitted_s = None

    def start_decoding(self) -> None:
        """Its source is in the cache."""
        self._decoding_s = time.perf_counter()

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


def routed(task: Task, route: np.ndarray) -> Task:
    """A row's task, or the router's choice (FP32 [3]) where it was left to it."""
    return Task(int(route.argmax())) if task is Task.AUTO else task
