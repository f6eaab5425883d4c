"""One run of a simulation: requests come, the policy batches them, one model runs a batch at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import numpy as np

from service.batching.batcher import Batcher
from service.batching.latency import LatencyModel
from service.batching.load import PlaceLoad
from service.batching.pending import Pending, RunningBatch, State
from service.batching.policies import BatchLimits, Decision, Policy, View
from service.batching.queue import RequestQueue
from service.batching.simulation.clock import SimulatedClock
from service.batching.simulation.costs import Costs
from service.batching.simulation.requests import Requests
from service.batching.tiers import Tier
from service.errors import ServiceError
from service.inference.place import Place, Standing
from service.inference.protocol import BundleIdentity, InferenceClient

NO_LIMIT = 1 << 40
OF_32 = BatchLimits(rows=32, tokens=NO_LIMIT)
"""Batches of 32 requests, however long."""

ROUNDING_S = 1e-9
"""Deadlines and ends of batches are sums of the same numbers in another order."""

LENGTH_CLASSES = (64, 128, 256)
"""Upper bounds, in tokens, of the classes of length but the last."""


@dataclass(kw_only=True, slots=True, eq=False)
class Outcome:
    """How each request ended."""

    in_time: np.ndarray
    """BOOL [R]."""

    late: np.ndarray
    """Answered after its deadline, or still waiting at it."""

    rejected: np.ndarray
    waited_s: np.ndarray
    """FP64 [R]: from its arrival until its batch began; NaN where none did."""

    batches: int = 0
    decisions: int = 0
    deciding_s: float = 0.0
    """Real seconds that the policy took."""

    def figures(self, requests: Requests, load: float) -> dict[str, object]:
        """Shares of all requests, and two of what load 1.0 is: `goodput`, requests in time a second, and
        `work_in_time`, their seconds of the model in batches sorted by length."""
        edges = np.searchsorted(LENGTH_CLASSES, requests.tokens)
        by_length = [self.in_time[edges == number] for number in range(len(LENGTH_CLASSES) + 1)]
        return {
            "load": load,
            "attained": float(self.in_time.mean()),
            "goodput": float(self.in_time.mean()) * load,
            "work_in_time": float(requests.work_s[self.in_time].sum() / requests.work_s.sum()) * load,
            "rejected": float(self.rejected.mean()),
            "late": float(self.late.mean()),
            "by_length": [float(each.mean()) if len(each) else None for each in by_length],
            "batches": self.batches,
            "decision_us": 1e6 * self.deciding_s / max(1, self.decisions),
        }


@dataclass(slots=True)
class _Timed:
    """A policy, and the time that it takes."""

    policy: Policy
    outcome: Outcome

    def admit(self, request: Pending[int], view: View) -> ServiceError | None:
        return self.policy.admit(request, view)

    def decide(self, view: View) -> Decision:
        began_s = time.perf_counter()
        decision = self.policy.decide(view)
        self.outcome.deciding_s += time.perf_counter() - began_s
        self.outcome.decisions += 1
        return decision


@dataclass(kw_only=True, slots=True, eq=False)
class Replay:
    """One model that takes a batch at a time, and everything in front of it."""

    requests: Requests
    costs: Costs
    policy: Policy
    latency: LatencyModel
    """What the policy believes batches to take."""

    limits: BatchLimits = OF_32
    jitter: float = 0.0
    """Standard deviation of the logarithm of what a batch takes over what it costs: machines are not steady."""

    seed: int = 0
    tier_of: Callable[[int], Tier] = lambda _: Tier.DEFAULT
    clock: SimulatedClock = field(default_factory=SimulatedClock)
    _generator: np.random.Generator = field(init=False, repr=False)

    def run(self) -> Outcome:
        """From the first arrival until the last request has ended."""
        count, self._generator = len(self.requests), np.random.default_rng(self.seed)
        none = partial(np.zeros, count, bool)
        outcome = Outcome(in_time=none(), late=none(), rejected=none(), waited_s=np.full(count, np.nan))
        place = Place("simulated", cast(InferenceClient, None), BundleIdentity(name="", sha256=""), {}, timeout_s=1.0)
        place.standing = Standing.READY
        batcher: Batcher[int] = Batcher(
            queue=RequestQueue(NO_LIMIT),
            policy=_Timed(self.policy, outcome),
            limits=self.limits,
            loads=[PlaceLoad(place=place, capacity=lambda _: self.limits.rows, latency=self.latency, ahead=1)],
            clock=self.clock,
            send=lambda batch: self._send(batcher, outcome, batch),
        )
        for index, arrival_s in enumerate(self.requests.arrivals_s.tolist()):
            self.clock.call_at(arrival_s, partial(self._submit, batcher, outcome, index))
        self.clock.run()
        return outcome

    def _submit(self, batcher: Batcher[int], outcome: Outcome, index: int) -> None:
        def refuse(_: ServiceError) -> None:
            outcome.rejected[index] = True

        def expire() -> None:
            outcome.late[index] = True

        pending = Pending(
            payload=index,
            tokens=int(self.requests.tokens[index]),
            group="model",
            deadline_s=float(self.requests.deadlines_s[index]) + ROUNDING_S,
            on_deadline=expire,
            on_refused=refuse,
            tier=self.tier_of(index),
        )
        try:
            batcher.submit(pending)
        except ServiceError as error:
            refuse(error)

    def _send(self, batcher: Batcher[int], outcome: Outcome, batch: RunningBatch[int]) -> None:
        seconds = self.costs.predict_s(len(batch.requests), batch.longest)
        # Of mean one: a machine that is less steady is no slower.
        seconds *= float(np.exp(self._generator.normal(-(self.jitter**2) / 2, self.jitter)))
        outcome.batches += 1
        for pending in batch.requests:
            outcome.waited_s[pending.payload] = batch.sent_s - pending.arrived_s
        self.clock.call_at(batch.sent_s + seconds, partial(self._finish, batcher, outcome, batch, seconds))

    def _finish(self, batcher: Batcher[int], outcome: Outcome, batch: RunningBatch[int], seconds: float) -> None:
        self.latency.observe(len(batch.requests), batch.longest, seconds)
        for pending in batch.requests:
            assert pending.state is State.RUNNING, "a batch ends once"
            outcome.in_time[pending.payload] = not outcome.late[pending.payload]
            batcher.settle(pending)
