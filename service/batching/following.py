"""Follows the answers of one batch, so that their lengths are learnt however they end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from deploy.triton.protocol import BatchNews, FinishReason, Row, RowUpdate, StepTotals, Task
from service.batching.lengths import AnswerLengths, OpenAnswer
from service.inference.place import Place


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
