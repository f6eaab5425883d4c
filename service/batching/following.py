"""Follows one batch in an engine: what its news teaches, and which of its requests have begun and ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from deploy.triton.protocol import BatchNews, EngineStats, FinishReason, Row, RowUpdate, StepTotals, Task
from service.batching.batcher import Batcher
from service.batching.lengths import AnswerLengths, OpenAnswer
from service.batching.pending import Pending, RunningBatch
from service.inference.place import Place


class FollowedBatch:
    """Rows that were sent to a place together, and the requests that they are for."""

    def __init__(self, batcher: Batcher[Any], batch: RunningBatch[Any], task: Task, rows: Sequence[Row]) -> None:
        """`rows` in the order of the batch's requests."""
        self._batcher, self._batch = batcher, batch
        self._load = batcher.load_of(batch)
        self._answers = FollowedAnswers(batcher.lengths, task, rows, batch.place)
        self._requests: dict[int, Pending[Any]] = {
            row.row_id: request for row, request in zip(rows, batch.requests, strict=True)
        }
        self._starting = [row.row_id for row in rows]
        self._before: dict[int, StepTotals] = {}
        """What had been decoded when a row began."""

    def hear(self, news: BatchNews, stats: EngineStats) -> None:
        """What the engine tells of the batch. Requests whose rows have ended are settled."""
        load = self._load
        load.decoding.learn(stats)
        self._batch.place.stats = stats
        self._answers.learn(news)
        decoded = stats.generation_steps + stats.summary_steps
        for prefill in news.prefills:
            load.latency.observe(prefill.rows, prefill.tokens, prefill.seconds)
            self._batcher.begin(self._batch, prefill.rows)
            begun, self._starting = self._starting[: prefill.rows], self._starting[prefill.rows :]
            self._before.update(dict.fromkeys(begun, decoded))
            for row_id in begun:
                load.decoding.begin(self._requests[row_id])
        for update in news.updates:
            if update.finish_reason is FinishReason.RUNNING:
                continue
            self._batcher.settle(self._requests[update.row_id])
            if never_begun(update):
                self._batcher.begin(self._batch, 1)
                if update.row_id in self._starting:
                    self._starting.remove(update.row_id)
            elif update.timings is not None and update.row_id in self._before:
                load.steps.learn_pace(update.timings.decode_s, decoded - self._before[update.row_id])

    def close(self) -> None:
        """Nothing more will be told."""
        self._answers.close()


def never_begun(last: RowUpdate) -> bool:
    """Whether a row ended without a prefill that anything reported: cancelled before its turn, or failed in it."""
    return last.finish_reason is FinishReason.ERROR or last.timings is None or last.timings.prefill_s == 0.0


class FollowedAnswers:
    """Answers to rows that were sent to a place together.

    Left out are rows whose clients have a say in how short they may be, and those that are routed to no text.
    """

    def __init__(self, lengths: AnswerLengths, task: Task, rows: Sequence[Row], place: Place) -> None:
        self._lengths, self._place = lengths, place
        self._waiting = [row for row in rows if row.sampling.min_new_tokens <= 1]
        self._rows = {row.row_id: row for row in self._waiting}
        self._open: dict[int, OpenAnswer] = {}
        self._task = task

    def learn(self, news: BatchNews) -> None:
        """What the engine tells of the batch."""
        if self._task is not Task.AUTO:
            # Rows start in their order. One that is routed is known by its first update.
            for _ in range(min(len(self._waiting), sum(prefill.rows for prefill in news.prefills))):
                self._begin(self._waiting.pop(0), self._task)
        for update in news.updates:
            self._hear(update)

    def close(self) -> None:
        """Nothing more will be told: what is still open has been cut."""
        for answer in self._open.values():
            self._lengths.end(answer, ended=False)
        self._open.clear()

    def _hear(self, update: RowUpdate) -> None:
        row = self._rows.get(update.row_id)
        if row is None:
            return
        if row.row_id not in self._open and update.task in (Task.GENERATION, Task.SUMMARY):
            if row in self._waiting:
                self._waiting.remove(row)
            self._begin(row, update.task)
        answer = self._open.get(row.row_id)
        if answer is not None:
            answer.generated += len(update.tokens)
            if update.finish_reason is not FinishReason.RUNNING:
                self._lengths.end(self._open.pop(row.row_id), ended=update.finish_reason is FinishReason.STOP)

    def _begin(self, row: Row, task: Task) -> None:
        answer = self._lengths.begin(task, row.source.cost, row.sampling.max_new_tokens)
        answer.steps = _steps_since(self._place, task)
        self._open[row.row_id] = answer


def _steps_since(place: Place, task: Task) -> Callable[[], int]:
    """Counts a decoder's steps from now on: as many tokens have the rows that live, told or not."""

    def totals() -> StepTotals:
        return place.stats.summary_steps if task is Task.SUMMARY else place.stats.generation_steps

    before = totals().steps
    return lambda: totals().steps - before
