"""Sends the fullest batch first, at once; a batch that waits counts as fuller, so that nothing starves."""

from __future__ import annotations

from dataclasses import dataclass

from service.batching.policies.filling import Candidate, candidates
from service.batching.policies.policy import Decision, Policy, View


@dataclass(frozen=True, slots=True)
class BatchFirst(Policy):
    """The fullest length bucket first."""

    ageing_s: float
    """A wait of so long counts as much as a full batch."""

    def decide(self, view: View) -> Decision:
        """The candidate that is fullest, its wait counted; if it does not fit, nothing overtakes it."""

        def fullness(candidate: Candidate) -> float:
            rows = len(candidate.requests) / view.limits.rows
            return rows + (view.now_s - candidate.requests[0].arrived_s) / self.ageing_s

        best = max(candidates(view), key=fullness, default=None)
        return Decision(batch=best.requests) if best is not None and best.fits else Decision()
