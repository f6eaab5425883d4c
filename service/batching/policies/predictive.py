"""Sends the batch that answers the most requests in time for each second of the model, and gives up what is hopeless.

It predicts how long every batch that could be made would take, counts only those whose deadlines it meets, and looks
again whenever the model is free. It never waits for company: what the wait would bring was less than what it cost, on
every trace that was tried (docs/batching.md has the figures).

Nothing starves: a request that is past due (lines.py) weighs more the longer it waits. One that no batch can answer in
time is refused as soon as that is known, unless the prediction may be to blame: then it goes where nothing else would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from service.batching.lines import Line
from service.batching.policies.grouping import Choice, Group, best_batch
from service.batching.policies.policy import Decision, View
from service.batching.queue import Pending
from service.errors import Overloaded, ServiceError

AGEING_S = 0.5
"""A request so long past due weighs twice what it did, and once more for every further time."""

CAUTION = 0.25
"""The most of a batch's predicted time that is kept free before a deadline. What is kept is the model's error."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Predictive:
    """What can be left out, to see what it brings."""

    refuses: bool = True
    """Whether hopeless requests leave at once, and not at their deadlines."""

    ages: bool = True
    sheds: bool = True
    """Whether only requests that a batch answers in time count for it."""

    groups: bool = True
    """Whether lengths decide who shares a batch. If not, those that are due first go together."""

    def admit(self, request: Pending[Any], view: View) -> ServiceError | None:
        """Refuses what could not be answered in time if it went next."""
        late_s = _Prospect.of(view).soonest_s(request.tokens) - request.deadline_s
        return _hopeless(late_s) if self.refuses and late_s > 0 else None

    def decide(self, view: View) -> Decision:
        """The best batch of all groups; without one, a request that may yet be in time, if nothing else runs."""
        if view.free_slots <= 0 and not view.idle:
            return Decision()
        prospect = _Prospect.of(view)
        refused: list[tuple[Pending[Any], ServiceError]] = []
        best: tuple[Choice, list[Line]] | None = None
        doubtful: list[Pending[Any]] = []
        for lines in view.queue.lines:
            group, late_s = self._group(lines, view, prospect)
            if self.refuses and late_s.max() > 0:
                refused += [(_at(lines, index), _hopeless(late_s[index])) for index in np.flatnonzero(late_s > 0)]
            choice = best_batch(group, view.latency.table_s, view.limits, view.free_slots)
            if choice is None:
                doubtful += [_at(lines, index) for index in np.flatnonzero(late_s <= 0)]
            elif best is None or choice.score > best[0].score:
                best = choice, lines
        batch: tuple[Pending[Any], ...] = ()
        if best is not None:
            batch = tuple(_at(best[1], index) for index in best[0].indices)
        elif view.idle and doubtful:
            batch = (min(doubtful, key=lambda request: request.due_s),)
        return Decision(batch=batch, refused=tuple(refused))

    def _group(self, lines: list[Line], view: View, prospect: _Prospect) -> tuple[Group, np.ndarray]:
        """Requests that may share a batch, and by how much each would be late at best: FP64 [R], negative in time."""
        dues_s, deadlines_s, tokens, weights, slots = np.concatenate([line.columns for line in lines], axis=1)
        if self.ages and dues_s.min() < view.now_s:
            weights = weights * (1 + np.maximum(0.0, view.now_s - dues_s) / AGEING_S)
        sizes = [line.columns.shape[1] for line in lines]
        group = Group(
            tokens=tokens,
            slack_s=(deadlines_s - prospect.free_s) / prospect.caution
            if self.sheds
            else np.full_like(deadlines_s, np.inf),
            weights=weights,
            slots=slots,
            starts=np.array(list(accumulate(sizes[:-1], initial=0))) if self.groups else np.zeros(1, int),
        )
        return group, prospect.soonest_s(tokens) - deadlines_s


@dataclass(frozen=True, kw_only=True, slots=True)
class _Prospect:
    """When a place can begin with the next batch, and how far that can be trusted."""

    view: View
    free_s: float
    caution: float
    """What is planned with, over what is predicted."""

    @classmethod
    def of(cls, view: View) -> _Prospect:
        free_s = view.now_s
        for number, batch in enumerate(batch for batch in view.running if batch.waits):
            begins_s = free_s if number else batch.sent_s
            seconds = view.latency.predict_s(len(batch.requests) - batch.begun, batch.longest)
            free_s = max(free_s, begins_s + seconds)
        return cls(view=view, free_s=free_s, caution=1 + min(view.latency.error_ratio, CAUTION))

    def soonest_s(self, tokens: Any) -> Any:
        """When a request could be answered at the earliest if it went next: predictions may be too long by their error.

        `tokens`: a number, or an array of them.
        """
        wait_s = self.free_s - self.view.now_s + self.view.latency.table_s(np.float64(1), tokens)
        return self.view.now_s + wait_s / (1 + self.view.latency.error_ratio)


def _at(lines: list[Line], index: int) -> Pending[Any]:
    """The request at an index of a group."""
    for line in lines:
        size = line.columns.shape[1]
        if index < size:
            return line.requests[index]
        index -= size
    raise IndexError("the group has no such request")


def _hopeless(late_s: float) -> Overloaded:
    return Overloaded(
        f"the answer would come {1e3 * late_s:.0f} ms after the request's deadline at best: try again later, or allow "
        "more time in X-Request-Timeout-Ms",
        retry_after_s=max(1, math.ceil(late_s)),
    )
