"""Batching policies: which waiting requests go next, together, and when. A file each.

| policy | sends |
|---|---|
| `immediate` | what there is, as soon as the model has room |
| `dynamic` | a batch that is full, or whose oldest request has waited long enough |
"""

from __future__ import annotations

from service.batching.policies.dynamic import Dynamic
from service.batching.policies.filling import bucket, candidates
from service.batching.policies.immediate import Immediate
from service.batching.policies.policy import BatchLimits, Decision, Policy, View

__all__ = ["BatchLimits", "Decision", "Dynamic", "Immediate", "Policy", "View", "bucket", "candidates", "make_policy"]


def make_policy(name: str, max_delay_s: float) -> Policy:
    """The policy of that name. Raises ValueError for an unknown one."""
    if name == "immediate":
        return Immediate()
    if name == "dynamic":
        return Dynamic(max_delay_s)
    raise ValueError(f"there is no batching policy {name!r}: choose immediate or dynamic")
