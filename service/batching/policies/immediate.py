"""Sends what there is as soon as a place has room."""

from __future__ import annotations

from service.batching.policies.filling import candidates
from service.batching.policies.policy import Decision, Policy, View


class Immediate(Policy):
    """No waiting for company."""

    def decide(self, view: View) -> Decision:
        """The oldest request and those that fit to it."""
        for candidate in candidates(view):
            return Decision(batch=candidate.requests if candidate.fits else ())
        return Decision()
