"""An engine on a machine that is not there: real scheduler, real pacing; prefills and steps take what they cost.

submit ─▶ Scheduler ─▶ a prefill at a time ─▶ slots ─▶ a token a step ─▶ news, as the engine tells it
                            └── beside it steps come as the engine's Pace says
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from deploy.triton.pacing import Pace
from deploy.triton.protocol import (
    BatchNews,
    EngineStats,
    FinishReason,
    GenerationBatch,
    PrefillTime,
    Row,
    RowTimings,
    RowUpdate,
    StepTotals,
    Task,
)
from deploy.triton.scheduler import Scheduler
from deploy.triton.slots import SIDES, SequenceSlot
from service.batching.simulation.clock import SimulatedClock
from service.batching.simulation.costs import Costs

Sink = Callable[[BatchNews, EngineStats], None]


PREFILL = Costs(5e-3, 0.0, 0.28e-3, 3.1e-7)


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """About what the shipped bundle takes on two cores (docs/results/neighbours.json): a source of 1,983 tokens 1.8 s,
    a step of one row 3.3 ms and of eight 7; beside steps a prefill 1.2 times as long."""

    prefill: Costs = PREFILL
    step_s: float = 2.8e-3
    row_s: float = 0.4e-3
    """Of a step, for each sequence."""

    cached_s: float = 0.5e-6
    """Of a step, for each position that it looks back at."""

    beside: float = 1.2
    """Time of a prefill beside steps, over its time alone; steps beside it take no longer, and come more rarely."""

    slots: int = 32
    prefill_tokens: int = 2048
    gap_steps: float = 3.0

    def decode_s(self, rows: int, cached_tokens: int) -> float:
        """Seconds of a step."""
        return self.step_s + rows * self.row_s + cached_tokens * self.cached_s

    def times(self, factor: float) -> Machine:
        """The same, so many times as slow."""
        return replace(
            self,
            prefill=self.prefill.times(factor),
            step_s=self.step_s * factor,
            row_s=self.row_s * factor,
            cached_s=self.cached_s * factor,
        )


@dataclass(slots=True, eq=False)
class Sent:
    """A batch in the engine."""

    sink: Sink
    updates: list[RowUpdate] = field(default_factory=list)
    prefills: list[PrefillTime] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Written:
    """A row in the engine."""

    row: Row
    task: Task
    batch: Sent
    length: int
    """Tokens that its answer will have."""

    sequences: list[SequenceSlot[Any]] = field(default_factory=list)
    generated: int = 0
    submitted_s: float = 0.0
    admitted_s: float = 0.0
    decoding_s: float = 0.0
    finished: bool = False

    @property
    def row_id(self) -> int:
        """The client's."""
        return self.row.row_id

    @property
    def cost(self) -> int:
        """Positions of its source."""
        return self.row.source.cost

    @property
    def slots_needed(self) -> int:
        """One a beam."""
        return self.row.sampling.num_beams


@dataclass(frozen=True, slots=True)
class Prefill:
    """Rows that are being encoded."""

    rows: list[Written]
    tokens: int
    began_s: float
    ends_s: float


class SimulatedEngine:
    """Takes batches and tells of them, on a simulated clock."""

    def __init__(self, machine: Machine, clock: SimulatedClock, length_of: Callable[[int], int]) -> None:
        """`length_of`: tokens that the answer to a row will have, by its id."""
        self.machine = machine
        self._clock, self._length_of = clock, length_of
        self._scheduler: Scheduler[Written] = Scheduler(slots=machine.slots, prefill_tokens=machine.prefill_tokens)
        self._pace = Pace(machine.gap_steps)
        self._groups: deque[list[Written]] = deque()
        self._prefill: Prefill | None = None
        self._stepping = False
        self._turns = 0
        """Turns that were arranged: only the last of them counts."""

        self._totals = dict.fromkeys(SIDES, StepTotals())
        self._reporting: dict[Sent, None] = {}
        self.most_slots = 0
        """That were ever taken."""

    @property
    def stats(self) -> EngineStats:
        """As the engine tells them."""
        return EngineStats(
            slots_used=self._scheduler.slots_used,
            slots_total=self.machine.slots,
            waiting_rows=self._scheduler.waiting + sum(map(len, self._groups)),
            generation_steps=self._totals[Task.GENERATION],
            summary_steps=self._totals[Task.SUMMARY],
        )

    def submit(self, batch: GenerationBatch, sink: Sink) -> None:
        """Queue a batch."""
        sent = Sent(sink)
        now_s = self._clock.now_s()
        self._scheduler.add(
            [Written(row, batch.task, sent, self._length_of(row.row_id), submitted_s=now_s) for row in batch.rows]
        )
        self._wake()

    def cancel(self, row_ids: Iterable[int]) -> None:
        """End rows before the next step."""
        self._scheduler.cancel(row_ids)
        self._wake()

    def _wake(self) -> None:
        if not self._stepping:
            self._turn_at(self._clock.now_s())

    def _turn_at(self, when_s: float) -> None:
        self._turns += 1
        number = self._turns
        self._clock.call_at(when_s, lambda: self._turn() if number == self._turns else None)

    def _turn(self) -> None:
        """Between two steps: rows leave, are encoded and start; then the next step, when it is due."""
        now_s = self._clock.now_s()
        gone = self._scheduler.take_cancelled()
        self._finish(gone, FinishReason.CANCELLED)
        if self._prefill is not None and all(row.finished for row in self._prefill.rows):
            self._prefill = None
        if self._prefill is not None and self._prefill.ends_s <= now_s:
            self._start_rows(self._prefill)
            self._prefill = None
        if self._prefill is None:
            self._begin_prefill()
        self._tell_sinks()
        prefill, begins_s = self._prefill, now_s
        if not self._scheduler.slots_used:
            if prefill is not None:
                self._turn_at(prefill.ends_s)
            return
        if prefill is not None:
            begins_s = max(now_s, self._pace.due_s(now_s, prefill.began_s))
        if prefill is not None and begins_s > now_s:
            self._turn_at(min(begins_s, prefill.ends_s))
        else:
            self._step(now_s)

    def _begin_prefill(self) -> None:
        if not self._groups:
            self._groups.extend(self._scheduler.next_groups())
        while self._groups:
            rows = [row for row in self._groups.popleft() if not row.finished]
            if rows:
                now_s, tokens = self._clock.now_s(), max(row.cost for row in rows)
                seconds = self.machine.prefill.predict_s(len(rows), tokens)
                if self._scheduler.slots_used:
                    seconds *= self.machine.beside
                for row in rows:
                    row.admitted_s = now_s
                self._prefill = Prefill(rows, tokens, now_s, now_s + seconds)
                return

    def _start_rows(self, prefill: Prefill) -> None:
        now_s = self._clock.now_s()
        for row in prefill.rows:
            if not row.finished:
                self._scheduler.assign(row, SIDES[row.task])
                row.decoding_s = now_s
        self.most_slots = max(self.most_slots, self._scheduler.slots_used)
        batch = prefill.rows[0].batch
        batch.prefills.append(
            PrefillTime(rows=len(prefill.rows), tokens=prefill.tokens, seconds=now_s - prefill.began_s)
        )
        self._reporting[batch] = None

    def _step(self, began_s: float) -> None:
        """Every row gets a token, its decoder's turn being over."""
        seconds, live = 0.0, []
        for task in SIDES:
            rows, bounds = self._scheduler.decoding(SIDES[task])
            if rows:
                cached = sum((row.cost + row.generated) * row.slots_needed for row in rows)
                took_s = self.machine.decode_s(bounds.stop - bounds.start, cached)
                self._totals[task] += StepTotals(
                    steps=1, rows=bounds.stop - bounds.start, cached_tokens=cached, seconds=took_s
                )
                seconds += took_s
                live += rows
        self._stepping = True
        self._clock.call_at(began_s + seconds, lambda: self._end_step(live, began_s))

    def _end_step(self, live: Sequence[Written], began_s: float) -> None:
        self._stepping = False
        sequences = sum(row.slots_needed for row in live)
        beside = self._prefill is not None
        self._pace.step(sequences, began_s, self._clock.now_s(), beside_prefill=beside)
        for row in live:
            row.generated += 1
        self._finish([row for row in live if row.generated >= row.length], FinishReason.STOP)
        self._turn()

    def _finish(self, rows: Sequence[Written], reason: FinishReason) -> None:
        now_s = self._clock.now_s()
        for row in rows:
            row.finished = True
            limit = row.row.sampling.max_new_tokens
            at_limit = reason is FinishReason.STOP and row.generated >= limit
            timings = RowTimings(
                queue_s=(row.admitted_s or now_s) - row.submitted_s,
                prefill_s=max(0.0, row.decoding_s - row.admitted_s),
                decode_s=now_s - (row.decoding_s or now_s),
            )
            row.batch.updates.append(
                RowUpdate(
                    row_id=row.row_id,
                    tokens=np.zeros(row.generated, np.int32),
                    finish_reason=FinishReason.LENGTH if at_limit else reason,
                    task=row.task,
                    timings=timings,
                )
            )
            self._reporting[row.batch] = None
        self._scheduler.finish(rows)

    def _tell_sinks(self) -> None:
        while self._reporting:
            batch = next(iter(self._reporting))
            del self._reporting[batch]
            news = BatchNews(updates=batch.updates, prefills=tuple(batch.prefills))
            batch.updates, batch.prefills = [], []
            batch.sink(news, self.stats)
