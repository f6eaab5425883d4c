"""Batching policies: which waiting requests go next, together, and when. A file each.

| policy | sends |
|---|---|
| `predictive` | the batch that is expected to answer the most requests in time for each second it takes |
| `dynamic` | a batch that is full, or whose oldest request has waited long enough |
| `batch_first` | the fullest batch |
| `immediate` | what there is, as soon as the model has room |
"""

from __future__ import annotations

from service.batching.policies.batch_first import BatchFirst
from service.batching.policies.dynamic import Dynamic
from service.batching.policies.filling import bucket, candidates
from service.batching.policies.immediate import Immediate
from service.batching.policies.making import make_policy
from service.batching.policies.policy import BatchLimits, Decision, Policy, View
from service.batching.policies.predictive import Predictive

__all__ = [
    "BatchFirst",
    "BatchLimits",
    "Decision",
    "Dynamic",
    "Immediate",
    "Policy",
    "Predictive",
    "View",
    "bucket",
    "candidates",
    "make_policy",
]
