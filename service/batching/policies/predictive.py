"""Sends the batch that answers the most requests in time for each second of the model, and gives up what is hopeless.

It predicts how long every batch that could be made would take, counts only those whose deadlines it meets, and looks
again whenever the model is free. It never waits for company: what the wait would bring was less than what it cost, on
every trace that was tried (docs/batching.md has the figures).

Nothing starves: while requests are past due (lines.py), every second batch goes to the one of them whose turn it is in
the queue's order, which is fair between clients; those that pay best have the other half. A request that no batch can
answer in time is refused as soon as that is known, unless the model has nothing else to do: then it runs, for a
prediction that is wrong would never be put right if nothing ran.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from service.batching.lines import Line, length_class
from service.batching.pending import Pending
from service.batching.policies.grouping import HASTE, Choice, Group, best_batch
from service.batching.policies.policy import Decision, View
from service.errors import Overloaded, ServiceError

CAUTION = 0.25
"""The most of a batch's predicted time that is kept free before a deadline. What is kept is the model's error."""


@dataclass(kw_only=True, slots=True)
class Predictive:
    """What can be left out, to see what it brings."""

    refuses: bool = True
    """Whether hopeless requests leave at once, and not at their deadlines."""

    ages: bool = True
    """Whether requests that are past due have every second batch."""

    sheds: bool = True
    """Whether only requests that a batch answers in time count for it."""

    groups: bool = True
    """Whether lengths decide who shares a batch. If not, those that are due first go together."""

    hurries: bool = True
    """Whether, of batches that pay about alike, the shorter goes."""

    _paid: bool = field(default=False, init=False, repr=False, compare=False)
    """Whether the last batch went for what it paid: the next may go to whose turn it is."""

    def admit(self, request: Pending[Any], view: View) -> ServiceError | None:
        """Refuses what could not be answered in time if it went next."""
        if view.idle and not view.queue:
            return None
        late_s = _Prospect.of(view).late_s(request)
        return _hopeless(late_s) if self.refuses and late_s > 0 else None

    def decide(self, view: View) -> Decision:
        """The best batch of all groups, or that of a request whose turn it is; without any, the request that is due
        first, if nothing runs."""
        if view.free_slots <= 0 and not view.idle:
            return Decision()
        prospect = _Prospect.of(view)
        best: tuple[Choice, _Members] | None = None
        late: list[Pending[Any]] = []
        groups = []
        for lines in view.queue.lines:
            choice, members, late_s = self._best(lines, view, prospect, together=not self.groups)
            groups.append((members, late_s))
            if choice is None:
                late += [line.requests[0] for line in lines]
            elif best is None or choice.score > best[0].score:
                best = choice, members
        batch: tuple[Pending[Any], ...] = ()
        seconds = 0.0
        turn = self._turn(view, prospect)
        self._paid = turn is None
        if turn is not None:
            batch, seconds = self._with(turn, view, prospect)
        elif best is not None:
            batch, seconds = best[1].of(best[0]), best[0].seconds
        elif view.idle and late:
            batch = (min(late, key=lambda request: request.due_s),)
        # Whoever is left has to wait for this batch, unless another place takes him.
        behind_s = 0.0 if view.elsewhere else seconds / (1 + view.latency.error_ratio)
        return Decision(batch=batch, refused=_refusals(batch, behind_s, groups) if self.refuses else ())

    def _best(
        self, lines: list[Line], view: View, prospect: _Prospect, *, together: bool
    ) -> tuple[Choice | None, _Members, np.ndarray]:
        """The best batch from some lines: from the first on, or from whichever it is best to begin with."""
        group, members, late_s = self._group(lines, view, prospect, together=together)
        if self.refuses:
            group.slack_s[late_s > 0] = -np.inf
        haste = HASTE if self.hurries else 1.0
        return best_batch(group, view.latency.table_s, view.limits, view.free_slots, haste), members, late_s

    def _turn(self, view: View, prospect: _Prospect) -> Pending[Any] | None:
        """Who is past due and may still be in time, of those the first in the queue's order; None where it is nobody's
        turn."""
        if not self.ages or not self._paid:
            return None
        if all(line.requests[0].due_s > view.now_s for lines in view.queue.lines for line in lines):
            return None
        past_due = (request for request in view.queue if request.due_s <= view.now_s)
        return next((request for request in past_due if prospect.late_s(request) <= 0), None)

    def _with(self, turn: Pending[Any], view: View, prospect: _Prospect) -> tuple[tuple[Pending[Any], ...], float]:
        """The best batch that one request is part of, and its seconds; none where it needs more slots than are free."""
        if turn.slots > view.free_slots and not view.idle:
            return (), 0.0
        group = next(lines for lines in view.queue.lines if lines[0].requests[0].group == turn.group)
        longest = length_class(turn.tokens)
        lines = [line for line in group if length_class(line.requests[0].tokens) <= longest]
        choice, members, _ = self._best(lines, view, prospect, together=True)
        others = () if choice is None else members.of(choice)
        batch, free = [turn], view.free_slots - turn.slots
        for other in others:
            if other is not turn and len(batch) < len(others) and other.slots <= free:
                batch.append(other)
                free -= other.slots
        return tuple(batch), view.latency.predict_s(len(batch), max(request.tokens for request in batch))

    def _group(
        self, lines: list[Line], view: View, prospect: _Prospect, *, together: bool
    ) -> tuple[Group, _Members, np.ndarray]:
        """Requests that may share a batch, and by how much each would be late at best: FP64 [R], negative in time."""
        columns = [line.columns for line in lines]
        _, deadlines_s, tokens, weights, slots = np.concatenate(columns, axis=1)
        firsts = [0, *accumulate(each.shape[1] for each in columns[:-1])]
        group = Group(
            tokens=tokens,
            slack_s=(deadlines_s - prospect.free_s) / prospect.caution
            if self.sheds
            else np.full_like(deadlines_s, np.inf),
            weights=weights,
            slots=slots,
            starts=np.zeros(1, int) if together else np.array(firsts),
        )
        return group, _Members(lines, firsts), prospect.soonest_s(tokens) - deadlines_s


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

    def late_s(self, request: Pending[Any]) -> float:
        """By how much a request would be late at best if it went next; negative where it would not."""
        return float(self.soonest_s(np.array([request.tokens]))[0]) - request.deadline_s


def _refusals(
    batch: tuple[Pending[Any], ...], behind_s: float, groups: list[tuple[_Members, np.ndarray]]
) -> tuple[tuple[Pending[Any], ServiceError], ...]:
    """Who would be late at best behind a batch that goes now. `groups`: requests, and how late all are anyway."""
    refused = []
    for members, late_s in groups:
        for index in np.flatnonzero(late_s + behind_s > 0).tolist():
            request = members[index]
            if request not in batch:
                refused.append((request, _hopeless(late_s[index] + behind_s)))
    return tuple(refused)


@dataclass(frozen=True, slots=True)
class _Members:
    """The requests of a group, by their indices in it."""

    lines: list[Line]
    firsts: list[int]
    """Where each line begins."""

    def __getitem__(self, index: int) -> Pending[Any]:
        number = bisect_right(self.firsts, index) - 1
        return self.lines[number].requests[index - self.firsts[number]]

    def of(self, choice: Choice) -> tuple[Pending[Any], ...]:
        """The requests of a batch."""
        return tuple(self[index] for index in choice.indices.tolist())


def _hopeless(late_s: float) -> Overloaded:
    return Overloaded(
        f"the answer would come {1e3 * late_s:.0f} ms after the request's deadline at best: try again later, or allow "
        "more time in X-Request-Timeout-Ms",
        retry_after_s=max(1, math.ceil(late_s)),
    )
