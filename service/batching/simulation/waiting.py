"""What waiting would bring: `predictive`, but it waits for the next arrival where a forecast says that this pays.

It is not one of the service's policies, for it does not pay: docs/batching.md has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from service.batching.pending import Pending
from service.batching.policies import Decision, Predictive, View
from service.errors import ServiceError

LATEST = 32
"""Arrivals whose mean gap is the forecast."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """Waits while one request more, come after the mean gap, would make a batch of more requests a second."""

    policy: Predictive

    def admit(self, request: Pending[Any], view: View) -> ServiceError | None:
        """As without waiting."""
        return self.policy.admit(request, view)

    def decide(self, view: View) -> Decision:
        """The batch that would go, or a look after the gap if it can be kept that long."""
        decision = self.policy.decide(view)
        count, gap_s = len(decision.batch), _gap_s(view)
        if not count or gap_s is None or count >= min(view.limits.rows, view.free_slots):
            return decision
        longest = max(request.tokens for request in decision.batch)
        now_s, later_s = (view.latency.predict_s(rows, longest) for rows in (count, count + 1))
        pays = (count + 1) / (gap_s + later_s) > count / now_s
        in_time = all(view.now_s + gap_s + later_s <= request.deadline_s for request in decision.batch)
        return Decision(look_again_s=view.now_s + gap_s) if pays and in_time else decision


def _gap_s(view: View) -> float | None:
    """Mean seconds between the latest arrivals; None before there are two."""
    latest = list(islice(reversed(view.arrivals.latest), LATEST))
    return (latest[0].at_s - latest[-1].at_s) / (len(latest) - 1) if len(latest) > 1 else None
