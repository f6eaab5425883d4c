"""One model's queue, policy and capacity: requests go in, batches come out.

    submit ─▶ queue ─▶ policy ─▶ send (a batch) … settle (each request, when it is answered or given up)

Synchronous and single-threaded: it acts when it is called, and when its clock calls. What a batch does is `send`'s
business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Generic

from service.batching.clock import Clock, Timer
from service.batching.drain import DrainRate
from service.batching.latency import LatencyModel
from service.batching.policies import BatchLimits, Policy, View
from service.batching.queue import Payload, Pending, QueueFull, RequestQueue, State
from service.errors import Overloaded, Unavailable

LONGEST_RETRY_S = 60


class Batcher(Generic[Payload]):
    """Turns requests into batches of one model."""

    def __init__(
        self,
        *,
        queue: RequestQueue[Payload],
        policy: Policy,
        limits: BatchLimits,
        slots: int,
        clock: Clock,
        latency: LatencyModel,
        send: Callable[[Sequence[Pending[Payload]]], None],
    ) -> None:
        """`slots`: how much may run at once. A request that needs more runs alone."""
        self.queue, self.clock, self.latency = queue, clock, latency
        self._policy, self._limits, self._slots, self._send = policy, limits, slots, send
        self._running: dict[Pending[Payload], None] = {}
        self._running_slots = 0
        self._drain = DrainRate()
        self._closed = False
        self._wake: Timer | None = None
        self._wake_s = math.inf

    @property
    def running(self) -> int:
        """Requests that were sent and have not been settled."""
        return len(self._running)

    def submit(self, request: Pending[Payload], *, bounded: bool = True) -> None:
        """Queue a request. `bounded=False` is for the rest of a request whose beginning was admitted.

        Raises Overloaded where the queue is full, Unavailable after `close`.
        """
        if self._closed:
            raise Unavailable("the service is shutting down: try again")
        request.arrived_s = self.clock.now_s()
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
        self._wake_at(self.clock.now_s())

    def settle(self, request: Pending[Payload]) -> None:
        """A request was answered, failed or given up: what it held is free. May be called again."""
        if request.state is State.WAITING:
            self.queue.remove(request)
        elif request.state is State.RUNNING:
            del self._running[request]
            self._running_slots -= request.slots
        request.state = State.SETTLED
        if request.timer is not None:
            request.timer.cancel()
        if self.queue:
            self._wake_at(self.clock.now_s())

    def close(self) -> list[Payload]:
        """Settle everything that waits or runs, and send nothing more; what was settled is for the caller to answer."""
        self._closed = True
        if self._wake is not None:
            self._wake.cancel()
        unanswered = [*self._running, *self.queue]
        for request in unanswered:
            self.settle(request)
        return [request.payload for request in unanswered]

    def retry_after_s(self) -> int:
        """When the queue may have drained, at the rate at which it last did."""
        return min(LONGEST_RETRY_S, max(1, math.ceil(self.queue.tokens * self._drain.seconds_per_token)))

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
        """Send batches as long as the policy names any."""
        self._wake, self._wake_s = None, math.inf
        while True:
            decision = self._policy.decide(
                View(
                    queue=self.queue,
                    now_s=self.clock.now_s(),
                    free_slots=self._slots - self._running_slots,
                    idle=not self._running,
                    limits=self._limits,
                    latency=self.latency,
                )
            )
            if not decision.batch:
                break
            now_s = self.clock.now_s()
            oldest_s = min(request.arrived_s for request in decision.batch)
            self._drain.depart(sum(request.tokens for request in decision.batch), oldest_s, now_s)
            for request in decision.batch:
                self.queue.remove(request)
                request.state, request.sent_s = State.RUNNING, now_s
                self._running[request] = None
                self._running_slots += request.slots
            self._send(decision.batch)
        if decision.look_again_s is not None:
            self._wake_at(decision.look_again_s)
