"""Sends the batch that answers the most requests in time for each second of the model, and gives up what is hopeless.

It predicts how long every batch that could be made would take, counts only those whose deadlines it meets, and looks
again whenever the model is free. It never waits for company: what the wait would bring was less than what it cost, on
every trace that was tried (docs/batching.md has the figures).

Nothing starves: a request that is past due (lines.py) weighs more the longer it waits. One that no batch can answer in
time is refused as soon as that is known, unless the model has nothing else to do: then it runs, for a prediction that
is wrong would never be put right if nothing ran.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from service.batching.lines import Line
from service.batching.pending import Pending
from service.batching.policies.grouping import HASTE, Choice, Group, best_batch
from service.batching.policies.policy import Decision, View
from service.errors import Overloaded, ServiceError

AGEING_S = 1.0
"""A request so long past due weighs twice what it did, and twice that after as long again: nobody waits much longer
than others who are past due, however much better those pay."""

MOST_DOUBLINGS = 100

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

    hurries: bool = True
    """Whether, of batches that pay about alike, the shorter goes."""

    def admit(self, request: Pending[Any], view: View) -> ServiceError | None:
        """Refuses what could not be answered in time if it went next."""
        if view.idle and not view.queue:
            return None
        late_s = float(_Prospect.of(view).soonest_s(np.array([request.tokens]))[0]) - request.deadline_s
        return _hopeless(late_s) if self.refuses and late_s > 0 else None

    def decide(self, view: View) -> Decision:
        """The best batch of all groups; without one, the request that is due first, if nothing runs."""
        if view.free_slots <= 0 and not view.idle:
            return Decision()
        prospect = _Prospect.of(view)
        best: tuple[Choice, list[Line]] | None = None
        late: list[Pending[Any]] = []
        groups = []
        for lines in view.queue.lines:
            group, late_s = self._group(lines, view, prospect)
            groups.append((lines, late_s))
            if self.refuses:
                group.slack_s[late_s > 0] = -np.inf
            haste = HASTE if self.hurries else 1.0
            choice = best_batch(group, view.latency.table_s, view.limits, view.free_slots, haste)
            if choice is None:
                late += [line.requests[0] for line in lines]
            elif best is None or choice.score > best[0].score:
                best = choice, lines
        batch: tuple[Pending[Any], ...] = ()
        behind_s = 0.0
        if best is not None:
            choice, lines = best
            batch = tuple(_at(lines, index) for index in choice.indices.tolist())
            # Whoever is left has to wait for this batch, unless another place takes him.
            behind_s = 0.0 if view.elsewhere else choice.seconds / (1 + view.latency.error_ratio)
        elif view.idle and late:
            batch = (min(late, key=lambda request: request.due_s),)
        refused = _refusals(batch, behind_s, groups) if self.refuses else ()
        return Decision(batch=batch, refused=refused)

    def _group(self, lines: list[Line], view: View, prospect: _Prospect) -> tuple[Group, np.ndarray]:
        """Requests that may share a batch, and by how much each would be late at best: FP64 [R], negative in time."""
        dues_s, deadlines_s, tokens, weights, slots = np.concatenate([line.columns for line in lines], axis=1)
        if self.ages and dues_s.min() < view.now_s:
            weights = weights * np.exp2(((view.now_s - dues_s) / AGEING_S).clip(0, MOST_DOUBLINGS))
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

    def soonest_s(self, tokens_R: np.ndarray) -> np.ndarray:
        """When requests could be answered at the earliest if each went next: predictions may be too long by their
        error."""
        wait_s = self.free_s - self.view.now_s + self.view.latency.table_s(np.ones(1), tokens_R)
        soonest_s: np.ndarray = self.view.now_s + wait_s / (1 + self.view.latency.error_ratio)
        return soonest_s


def _refusals(
    batch: tuple[Pending[Any], ...], behind_s: float, groups: list[tuple[list[Line], np.ndarray]]
) -> tuple[tuple[Pending[Any], ServiceError], ...]:
    """Who would be late at best behind a batch that goes now. `groups`: lines, and by how much all are late anyway."""
    refused = []
    for lines, late_s in groups:
        for index in np.flatnonzero(late_s + behind_s > 0).tolist():
            request = _at(lines, index)
            if request not in batch:
                refused.append((request, _hopeless(late_s[index] + behind_s)))
    return tuple(refused)


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
