"""One lane's queue and policy, and what it has running where: requests go in, batches come out.

    submit ─▶ queue ─▶ policy ─▶ send (a batch, to a place) … begin ─▶ settle (each request: answered or given up)

Synchronous and single-threaded: it acts when it is called, and when its clock calls. What a batch does is `send`'s
business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic

import structlog

from service.batching.clock import Clock, Timer
from service.batching.drain import DrainRate
from service.batching.forecast import Forecast
from service.batching.lengths import AnswerLengths
from service.batching.load import PlaceLoad
from service.batching.pending import Payload, Pending, RunningBatch, State
from service.batching.policies import BatchLimits, Decision, Immediate, Policy, View
from service.batching.queue import QueueFull, RequestQueue
from service.errors import Overloaded, Unavailable

log = structlog.get_logger(__name__)

LONGEST_RETRY_S = 60


class Batcher(Generic[Payload]):
    """Turns requests into batches."""

    def __init__(
        self,
        *,
        queue: RequestQueue[Payload],
        policy: Policy,
        limits: BatchLimits,
        loads: Sequence[PlaceLoad[Payload]],
        clock: Clock,
        send: Callable[[RunningBatch[Payload]], None],
    ) -> None:
        """`loads`: what this batcher may have running at each place. A request that needs more runs alone."""
        self.queue, self.clock, self.loads = queue, clock, tuple(loads)
        self.forecast, self.lengths = Forecast(), AnswerLengths()
        self._policy, self._limits, self._send = policy, limits, send
        self._load_of = {load.place: load for load in self.loads}
        self._drain = DrainRate()
        self._closed = False
        self._wake: Timer | None = None
        self._wake_s = math.inf

    @property
    def running(self) -> int:
        """Requests that were sent and have not been settled."""
        return sum(len(load.running) for load in self.loads)

    def submit(self, request: Pending[Payload], *, bounded: bool = True) -> None:
        """Queue a request. `bounded=False` is for the rest of a request whose beginning was admitted.

        Raises Overloaded where the queue is full, Unavailable after `close`, or what the policy refuses it with.
        """
        if self._closed:
            raise Unavailable("the service is shutting down: try again")
        request.arrived_s = self.clock.now_s()
        self.forecast.record(request.arrived_s, request.tokens, request.group)
        if bounded:
            self._ask_policy(request)
        try:
            self.queue.add(request, bounded=bounded)
        except QueueFull:
            raise Overloaded(
                f"the queue holds {self.queue.tokens} of {self.queue.max_tokens} tokens and has no room for "
                f"{request.tokens} more: try again later",
                retry_after_s=self.retry_after_s(),
            ) from None
        request.state = State.WAITING
        request.timer = self.clock.call_at(request.deadline_s, lambda: self._expire(request))
        self.wake()

    def load_of(self, batch: RunningBatch[Payload]) -> PlaceLoad[Payload]:
        """The load that a batch is part of."""
        return self._load_of[batch.place]

    def begin(self, batch: RunningBatch[Payload], count: int) -> None:
        """The model has begun with so many more requests of a batch, or will not begin with them any more."""
        batch.begun = min(batch.begun + count, len(batch.requests))
        if not batch.waits and self.queue:
            self.wake()

    def settle(self, request: Pending[Payload]) -> None:
        """A request was answered, failed or given up: what it held is free. May be called again."""
        if request.state is State.WAITING:
            self.queue.remove(request)
        elif request.state is State.RUNNING:
            assert request.batch is not None, "a running request is part of a batch"
            self.load_of(request.batch).release(request)
        request.state = State.SETTLED
        if request.timer is not None:
            request.timer.cancel()
        if self.queue:
            self.wake()

    def withdraw(self) -> list[Payload]:
        """Settle everything that waits; it is for the caller to answer."""
        waiting = list(self.queue)
        for request in waiting:
            self.settle(request)
        return [request.payload for request in waiting]

    def close(self) -> list[Payload]:
        """Settle everything that waits or runs, and send nothing more; what was settled is for the caller to answer."""
        self._closed = True
        if self._wake is not None:
            self._wake.cancel()
        running = [request for load in self.loads for request in load.running]
        for request in running:
            self.settle(request)
        return [request.payload for request in running] + self.withdraw()

    def retry_after_s(self) -> int:
        """When the queue may have drained, at the rate at which it last did."""
        return min(LONGEST_RETRY_S, max(1, math.ceil(self.queue.tokens * self._drain.seconds_per_token)))

    def wake(self) -> None:
        """Something has changed: ask the policy again."""
        self._wake_at(self.clock.now_s())

    def _expire(self, request: Pending[Payload]) -> None:
        if request.state is State.WAITING:
            self.settle(request)
        request.on_deadline()

    def _wake_at(self, when_s: float) -> None:
        if self._closed or when_s >= self._wake_s:
            return
        if self._wake is not None:
            self._wake.cancel()
        self._wake_s = when_s
        self._wake = self.clock.call_at(when_s, self._dispatch)

    def _dispatch(self) -> None:
        """Send batches as long as the policy names any for some place."""
        self._wake, self._wake_s = None, math.inf
        look_again_s = math.inf
        open_loads = sorted((load for load in self.loads if load.accepts), key=lambda load: load.busy)
        while self.queue and open_loads:
            load = open_loads[0]
            decision = self._decide(load)
            for request, error in decision.refused:
                self.settle(request)
                request.on_refused(error)
            if decision.batch:
                self._send_to(load, decision.batch)
            if decision.batch or decision.refused:
                open_loads = sorted((each for each in open_loads if each.accepts), key=lambda each: each.busy)
                continue
            if decision.look_again_s is not None:
                look_again_s = min(look_again_s, decision.look_again_s)
            open_loads.pop(0)
        if look_again_s < math.inf:
            self._wake_at(look_again_s)

    def _send_to(self, load: PlaceLoad[Payload], requests: tuple[Pending[Payload], ...]) -> None:
        now_s = self.clock.now_s()
        oldest_s = min(request.arrived_s for request in requests)
        self._drain.depart(sum(request.tokens for request in requests), oldest_s, now_s)
        for request in requests:
            self.queue.take(request)
            request.state = State.RUNNING
        self._send(load.begin(requests, now_s))

    def _decide(self, load: PlaceLoad[Payload]) -> Decision:
        """What the policy says; a policy that fails costs its judgement, not the requests that wait."""
        view = self._view(load)
        try:
            decision = self._policy.decide(view)
            refused = [request for request, _ in decision.refused]
            if any(request.state is not State.WAITING for request in (*decision.batch, *refused)):
                raise ValueError("the decision is about a request that does not wait")
            return decision
        except Exception:
            log.exception("the batching policy failed: a batch goes as soon as there is room")
            return Immediate().decide(view)

    def _ask_policy(self, request: Pending[Payload]) -> None:
        """Raises what the policy refuses a request with."""
        view = self._view(min(self.loads, key=lambda load: load.busy))
        try:
            refusal = self._policy.admit(request, view)
        except Exception:
            log.exception("the batching policy failed: a request is admitted unasked")
            return
        if refusal is not None:
            raise refusal

    def _view(self, load: PlaceLoad[Payload]) -> View:
        return View(
            queue=self.queue,
            now_s=self.clock.now_s(),
            forecast=self.forecast,
            free_slots=load.free_slots,
            elsewhere=any(each.place.usable for each in self.loads if each is not load),
            idle=not load.running,
            limits=self._limits.of_at_most(load.tokens(load.place)),
            latency=load.latency,
            decoding=load.decoding,
            running=tuple(load.batches),
        )
