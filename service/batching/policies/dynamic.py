"""Sends a batch when it is full or its oldest request has waited long enough."""

from __future__ import annotations

from dataclasses import dataclass

from service.batching.policies.filling import candidates
from service.batching.policies.policy import Decision, Policy, View


@dataclass(frozen=True, slots=True)
class Dynamic(Policy):
    """A bounded wait for company, as Triton's own dynamic batcher has it."""

    max_delay_s: float

    def decide(self, view: View) -> Decision:
        """The first batch that is ripe."""
        look_again_s: float | None = None
        for candidate in candidates(view):
            ripe_s = min(request.arrived_s for request in candidate.requests) + self.max_delay_s
            if candidate.full or ripe_s <= view.now_s:
                # What does not fit holds up those behind it, not the older ones that were not ripe yet.
                return Decision(batch=candidate.requests) if candidate.fits else Decision(look_again_s=look_again_s)
            look_again_s = ripe_s if look_again_s is None else min(look_again_s, ripe_s)
        return Decision(look_again_s=look_again_s)
