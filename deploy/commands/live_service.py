"""A running service that is measured: who it is, and what it takes beside its model.

A simulation knows what batches cost. A real service also has a way there and back, computes on the model's cores, and
runs on a machine that is not steady: three constants, measured before any load, which no attainment has a part in.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace

import httpx
import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from deploy.benchmark.load import check_answers
from deploy.benchmark.questions import SizedQuestions
from deploy.benchmark.replay import at_once
from deploy.benchmark.unbatched import unbatched_s
from service.batching.simulation.costs import Costs

PROBED, CLIENTS = 64, 16
"""Requests of one length, and how many are asked for at once, that tell what a request takes of the model's time."""

METRICS_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """A service's own metrics."""

    batches: float
    """Sent to its models so far."""

    rows: float
    """Of all of them."""

    error_ratio: float
    """How far its recent predictions of batches of windows were off."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LiveService:
    """A Trident that runs somewhere."""

    policy: str
    """That it was started with."""

    url: str

    def counted(self) -> Counted:
        """What it has counted so far. Raises ValueError where it does not say."""
        check_answers(self.url)
        text = httpx.get(f"{self.url}/metrics", timeout=METRICS_TIMEOUT_S).text
        found = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        try:
            return Counted(
                batches=found["trident_batch_size_count",],
                rows=found["trident_batch_size_sum",],
                error_ratio=found["trident_latency_model_error_ratio", "qa"],
            )
        except KeyError as missing:
            raise ValueError(f"{self.url} has no metric {missing.args[0][0]}: it is no Trident") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class Beside:
    """What a service takes of the model's time, beside the model."""

    batch_s: float
    """A batch's way there and back: what a request alone takes longer than its run."""

    request_s: float
    """Of each request where many come at once: gateway and model share the cores."""

    error_ratio: float
    """How far the service's own predictions of batches were off, in the mean: policies are as careful as that."""

    @property
    def jitter(self) -> float:
        """Standard deviation of a logarithm that is off by so much in the mean, if it is a normal one."""
        return self.error_ratio * math.sqrt(math.pi / 2)

    def added_to(self, costs: Costs) -> Costs:
        """What batches cost with it."""
        return replace(costs, a=costs.a + self.batch_s, b=costs.b + self.request_s)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Known:
    """A service, and what was measured of it before its loads."""

    service: LiveService
    alone_s: np.ndarray
    """FP64 [R]: each request's time alone."""

    beside: Beside
    costs: Costs
    """Of batches, with what it takes beside the model."""


def know(service: LiveService, questions: SizedQuestions, tokens: np.ndarray, costs: Costs) -> Known:
    """Measure a service that has nothing else to do. `tokens`: of the requests; `costs`: of the model alone.

    Raises ValueError where it does not answer.
    """
    alone_s = asyncio.run(unbatched_s(service.url, questions, tokens))
    batch_s = max(0.0, float(np.median(alone_s - costs.table_s(np.ones(1), tokens.astype(np.float64)))))
    length = int(np.median(tokens))
    before = service.counted()
    seconds = asyncio.run(at_once(service.url, questions.bodies([length] * PROBED), CLIENTS))
    after = service.counted()
    batches, rows = after.batches - before.batches, after.rows - before.rows
    model_s = batches * costs.a + rows * (costs.predict_s(1, length) - costs.a)
    request_s = max(0.0, (seconds - model_s - batches * batch_s) / rows)
    beside = Beside(batch_s=batch_s, request_s=request_s, error_ratio=after.error_ratio)
    return Known(service=service, alone_s=alone_s, beside=beside, costs=beside.added_to(costs))
