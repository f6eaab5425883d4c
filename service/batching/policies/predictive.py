"""Sends the batch that answers the most requests in time for each second of the model, and gives up what is hopeless.

It predicts how long every batch that could be made would take, counts only those whose deadlines it meets, and looks
again whenever the model is free. It never waits for company: what the wait would bring was less than what it cost, on
every trace that was tried (docs/batching.md has the figures).

An answer that is written token by token counts by how likely it ends in time, and has to be worth more than what its
steps take from those that are written already (decoding.py).

Nothing starves: while requests are past due (lines.py), every second batch goes to the one of them whose turn it is in
the queue's order, which is fair between clients, and one in eight to `flex`; those that pay best have the rest. A
request that no batch can answer in time is refused as soon as that is known, unless the model has nothing else to do:
then it runs, for a prediction that is wrong would never be put right if nothing ran.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from service.batching.decoding import in_time
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

    spares: bool = True
    """Whether an answer has to be worth more than what its steps take from those that are written already."""

    _paid: int = field(default=0, init=False, repr=False, compare=False)
    """Batches that went for what they paid since the last that went to whose turn it was."""

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
        groups = [self._group(lines, view, prospect, together=not self.groups) for lines in view.queue.lines]
        turn = self._turn(view, prospect)
        batch = self._paying(groups, view) if turn is None else self._with(turn, view, prospect)
        if batch:
            self._paid = self._paid + 1 if turn is None else 0
        behind_s = 0.0
        if batch and not view.elsewhere:
            # Whoever is left has to wait for this batch: for what it takes, not for what its line's longest would.
            longest = max(request.tokens for request in batch)
            behind_s = view.latency.predict_s(len(batch), longest) / (1 + view.latency.error_ratio)
        return Decision(batch=batch, refused=_refusals(batch, behind_s, groups) if self.refuses else ())

    def _paying(self, groups: list[_Waiting], view: View) -> tuple[Pending[Any], ...]:
        """The batch that pays best; without one, the request that is due first, if nothing runs."""
        best: tuple[Choice, _Waiting] | None = None
        for waiting in groups:
            choice = self._best(waiting, view)
            if choice is not None and (best is None or choice.score > best[0].score):
                best = choice, waiting
        if best is not None:
            return best[1].of(best[0])
        late = [line.requests[0] for waiting in groups for line in waiting.lines]
        return (min(late, key=lambda request: request.due_s),) if view.idle and late else ()

    def _best(self, waiting: _Waiting, view: View) -> Choice | None:
        """The best batch of a group."""
        haste = HASTE if self.hurries else 1.0
        return best_batch(waiting.group, view.latency.table_s, view.limits, view.free_slots, haste)

    def _turn(self, view: View, prospect: _Prospect) -> Pending[Any] | None:
        """Who is past due and may still be in time, of those the first in the queue's order; None where it is nobody's
        turn."""
        if not self.ages or not self._paid:
            return None

        def may_have_it(request: Pending[Any]) -> bool:
            return request.due_s <= view.now_s and request.tier.turn_after <= self._paid

        if not any(may_have_it(line.requests[0]) for lines in view.queue.lines for line in lines):
            return None
        past_due = (request for request in view.queue if may_have_it(request))
        return next((request for request in past_due if prospect.late_s(request) <= 0), None)

    def _with(self, turn: Pending[Any], view: View, prospect: _Prospect) -> tuple[Pending[Any], ...]:
        """The best batch that one request is part of; none where it needs more slots than are free."""
        if turn.slots > view.free_slots and not view.idle:
            return ()
        group = next(lines for lines in view.queue.lines if lines[0].requests[0].group == turn.group)
        longest = length_class(turn.tokens)
        lines = [line for line in group if length_class(line.requests[0].tokens) <= longest]
        company = self._group(lines, view, prospect, together=True)
        choice = self._best(company, view)
        others = () if choice is None else company.of(choice)
        batch, free = [turn], view.free_slots - turn.slots
        for other in others:
            if other is not turn and len(batch) < len(others) and other.slots <= free:
                batch.append(other)
                free -= other.slots
        return tuple(batch)

    def _group(self, lines: list[Line], view: View, prospect: _Prospect, *, together: bool) -> _Waiting:
        """The requests of some lines. `together`: batches begin with the first line, not with whichever is best."""
        columns = [line.columns for line in lines]
        _, deadlines_s, tokens, weights, slots = np.concatenate(columns, axis=1)
        firsts = [0, *accumulate(each.shape[1] for each in columns[:-1])]
        slack_s, work_s, soonest_s = np.full_like(deadlines_s, np.inf), None, prospect.soonest_s(tokens)
        if self.sheds:
            slack_s = (deadlines_s - prospect.free_s) / prospect.caution
        kind = lines[0].requests[0].group
        if lines[0].requests[0].answer.likely:
            answers_3R = np.concatenate([line.answers for line in lines], axis=1)
            soonest_s = prospect.soonest_s(tokens, view.decoding.least_s(kind, tokens, answers_3R[0]))
            added_s = slots * view.decoding.added_s(kind, tokens, answers_3R[1])
            work_s = answers_3R[1] * added_s
            if self.sheds:
                token_s = view.decoding.token_s_of(kind, tokens, answers_3R[1])
                alone_s = view.latency.table_s(np.ones(1), tokens)
                weights = weights * in_time((slack_s - alone_s) / token_s, answers_3R)
                slack_s = slack_s - answers_3R[0] * token_s
            if self.spares:
                weights = weights - view.decoding.price(view.now_s) * added_s
            slack_s[weights <= 0] = -np.inf
        late_s = soonest_s - deadlines_s
        if self.refuses:
            slack_s[late_s > 0] = -np.inf
        group = Group(
            tokens=tokens,
            slack_s=slack_s,
            weights=weights,
            slots=slots,
            starts=np.zeros(1, int) if together else np.array(firsts),
            work_s=work_s,
        )
        return _Waiting(lines, firsts, group, late_s)


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

    def soonest_s(self, tokens_R: np.ndarray, writing_s: np.ndarray | float = 0.0) -> np.ndarray:
        """When requests could be answered at the earliest if each went next, and was written in so many seconds:
        predictions may be too long by their error."""
        wait_s = self.free_s - self.view.now_s + self.view.latency.table_s(np.ones(1), tokens_R) + writing_s
        soonest_s: np.ndarray = self.view.now_s + wait_s / (1 + self.view.latency.error_ratio)
        return soonest_s

    def late_s(self, request: Pending[Any]) -> float:
        """By how much a request would be late at best if it went next; negative where it would not."""
        tokens, least, writing_s = np.array([request.tokens]), request.answer.least, 0.0
        if least:
            writing_s = float(self.view.decoding.least_s(request.group, tokens, np.array([least]))[0])
        return float(self.soonest_s(tokens, writing_s)[0]) - request.deadline_s


def _refusals(
    batch: tuple[Pending[Any], ...], behind_s: float, groups: list[_Waiting]
) -> tuple[tuple[Pending[Any], ServiceError], ...]:
    """Who would be late at best behind a batch that goes now."""
    refused = []
    for waiting in groups:
        late_s = waiting.late_s + behind_s
        for index in np.flatnonzero(late_s > 0).tolist():
            request = waiting[index]
            if request not in batch:
                refused.append((request, _hopeless(late_s[index])))
    return tuple(refused)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """Requests that may share a batch, by their indices in the group."""

    lines: list[Line]
    firsts: list[int]
    """Where each line begins."""

    group: Group
    late_s: np.ndarray
    """FP64 [R]: by how much each would be late at best if it went next; negative where it would not."""

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
