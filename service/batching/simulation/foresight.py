"""A policy that knows what will come: what forecasts could bring at most, about.

At every decision it tries several batches, and waiting for the next arrival, each against the true future: what
follows is batched as `predictive` does it. It keeps what leaves the most requests in time. The best order of all is a
search that does not end, so this is no bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from service.batching.lines import length_class
from service.batching.policies import Decision, Policy, View
from service.batching.policies.grouping import Choice, Group, best_batch
from service.batching.simulation.requests import Requests

TRIED = 8
"""Batches that a decision tries, those with the most requests in time a second."""

KNOWN = 64
"""Arrivals that it looks ahead."""


@dataclass(slots=True)
class Foresight(Policy):
    """Knows every arrival, length and deadline of one run."""

    requests: Requests
    _classes: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._classes = np.array([length_class(int(tokens)) for tokens in self.requests.tokens])

    def decide(self, view: View) -> Decision:
        """The batch that leaves the most requests in time."""
        waiting = {request.payload: request for request in view.queue}
        here = np.array(sorted(waiting))
        following = int(np.searchsorted(self.requests.arrivals_s, view.now_s, side="right"))
        known = np.concatenate([here, np.arange(following, min(following + KNOWN, len(self.requests)))])
        best: tuple[float, np.ndarray] | None = None
        for batch, ends_s in self._tried(here, view):
            rest = np.setdiff1d(known, batch, assume_unique=True)
            value = len(batch) + self._follow(rest, ends_s, view)
            if best is None or value > best[0]:
                best = value, batch
        if best is not None and len(best[1]):
            return Decision(batch=tuple(waiting[index] for index in best[1].tolist()))
        return Decision(look_again_s=self._next_s(following))

    def _tried(self, here: np.ndarray, view: View) -> list[tuple[np.ndarray, float]]:
        """Batches, and when each would end; an empty one ends with the next arrival."""
        found: list[tuple[Choice, np.ndarray]] = []
        order, group = self._group(here, view.now_s)
        bounds = [*group.starts.tolist(), len(order)]
        for first, last in pairwise(bounds):
            longest = group.tokens[first:last].max()
            for rows in (view.limits.rows, view.limits.rows // 2, view.limits.rows // 4, 1):
                part = slice(first, None)
                kept = np.flatnonzero(group.tokens[part] <= longest)
                sub = Group(
                    tokens=group.tokens[part][kept],
                    slack_s=group.slack_s[part][kept],
                    weights=group.weights[part][kept],
                    slots=group.slots[part][kept],
                    starts=np.zeros(1, int),
                )
                limits = type(view.limits)(rows=rows, tokens=view.limits.tokens)
                choice = best_batch(sub, view.latency.table_s, limits, view.free_slots)
                if choice is not None:
                    found.append((choice, order[part][kept][choice.indices]))
        found.sort(key=lambda each: -each[0].score)
        tried = {batch.tobytes(): (batch, view.now_s + choice.seconds) for choice, batch in found}
        following = int(np.searchsorted(self.requests.arrivals_s, view.now_s, side="right"))
        next_s = self._next_s(following)
        waits = [] if next_s is None else [(here[:0], next_s)]
        return [*list(tried.values())[:TRIED], *waits]

    def _follow(self, rest: np.ndarray, now_s: float, view: View) -> int:
        """How many of the rest are in time if `predictive` goes on from here."""
        in_time = 0
        alone_s = view.latency.table_s(np.ones(1), self.requests.tokens.astype(np.float64))
        while len(rest):
            rest = rest[now_s + alone_s[rest] <= self.requests.deadlines_s[rest]]
            here = rest[self.requests.arrivals_s[rest] <= now_s]
            if not len(here):
                if not len(rest):
                    break
                now_s = float(self.requests.arrivals_s[rest].min())
                continue
            order, group = self._group(here, now_s)
            choice = best_batch(group, view.latency.table_s, view.limits, view.free_slots)
            if choice is None:
                break
            in_time += len(choice.indices)
            now_s += choice.seconds
            rest = np.setdiff1d(rest, order[choice.indices], assume_unique=True)
        return in_time

    def _group(self, here: np.ndarray, now_s: float) -> tuple[np.ndarray, Group]:
        """Requests in the order of lines, and what a batch is chosen from."""
        classes, deadlines_s = self._classes[here], self.requests.deadlines_s[here]
        order = np.lexsort((deadlines_s, -classes))
        starts = np.flatnonzero(np.diff(classes[order], prepend=math.inf))
        ones = np.ones(len(here))
        group = Group(
            tokens=self.requests.tokens[here][order].astype(np.float64),
            slack_s=(deadlines_s - now_s)[order],
            weights=ones,
            slots=ones,
            starts=starts,
        )
        return here[order], group

    def _next_s(self, following: int) -> float | None:
        arrivals_s = self.requests.arrivals_s
        return float(arrivals_s[following]) if following < len(arrivals_s) else None
