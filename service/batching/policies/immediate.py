"""Sends what there is as soon as a place has room."""

from __future__ import annotations

from typing import Any

from service.batching.pending import Pending
from service.batching.policies.filling import candidates
from service.batching.policies.policy import Decision, View
from service.errors import ServiceError


class Immediate:
    """No waiting for company."""

    def admit(self, request: Pending[Any], view: View) -> ServiceError | None:
        """Everybody: the queue's bound is all there is."""
        return None

    def decide(self, view: View) -> Decision:
        """The oldest request and those that fit to it."""
        for candidate in candidates(view):
            return Decision(batch=candidate.requests if candidate.fits else ())
        return Decision()
