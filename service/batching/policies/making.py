"""From a policy's name in the settings to the policy."""

from __future__ import annotations

from service.batching.policies.batch_first import BatchFirst
from service.batching.policies.dynamic import Dynamic
from service.batching.policies.immediate import Immediate
from service.batching.policies.policy import Policy
from service.batching.policies.predictive import Predictive
from service.settings import BatchingSettings


def make_policy(knobs: BatchingSettings) -> Policy:
    """The policy that the settings name."""
    match knobs.policy:
        case "predictive":
            return Predictive(**knobs.predictive.model_dump())
        case "dynamic":
            return Dynamic(knobs.max_delay_s)
        case "batch_first":
            return BatchFirst(knobs.ageing_s)
        case "immediate":
            return Immediate()
