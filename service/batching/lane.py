"""What the lanes share: tickets come in, batches go to places, and whatever happens there, every ticket hears.

submit ─▶ Batcher ─▶ _send ─▶ _run (a task a batch, until all of it is settled)
                                └ fails: the place is doubted, the batch's tickets fail
a place changes ─▶ the batcher is woken; where all places are down, what waits fails
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Hashable, Sequence
from typing import Any, Generic, TypeVar

import structlog

from deploy.triton.protocol import Source
from service.batching.batcher import Batcher
from service.batching.lengths import NO_ANSWER, ExpectedAnswer
from service.batching.pending import Pending, RunningBatch
from service.batching.tiers import Tier
from service.errors import DeadlineExceeded, InferenceFailed, ServiceError, Unavailable
from service.inference.fleet import Fleet

log = structlog.get_logger(__name__)


class Ticket(ABC):
    """One request of a lane between its submission and its end."""

    def __init__(
        self,
        source: Source,
        group: Hashable,
        deadline_s: float,
        *,
        flow: Hashable | None = None,
        slots: int = 1,
        answer: ExpectedAnswer = NO_ANSWER,
        tier: Tier = Tier.DEFAULT,
    ) -> None:
        """`flow`: whom it shares its turns with; without one it has turns of its own."""
        self.source = source
        self.pending: Pending[Any] = Pending(
            payload=self,
            tokens=source.cost,
            group=group,
            flow=self if flow is None else flow,
            slots=slots,
            answer=answer,
            tier=tier,
            deadline_s=deadline_s,
            on_deadline=self._expire,
            on_refused=self.fail,
        )

    @abstractmethod
    def fail(self, error: ServiceError) -> None:
        """Tell whoever waits; nothing where it has ended."""

    def _expire(self) -> None:
        self.fail(DeadlineExceeded("the request's time is over: send a longer X-Request-Timeout-Ms, or ask for less"))


AnyTicket = TypeVar("AnyTicket", bound=Ticket)
BatcherMaker = Callable[[Callable[[RunningBatch[Any]], None]], Batcher[Any]]
"""Makes the batcher around a lane's `send`."""


class Lane(ABC, Generic[AnyTicket]):
    """The way of one kind of request to the models."""

    peer: str
    """Who answers, for messages."""

    def __init__(self, fleet: Fleet, batcher: BatcherMaker) -> None:
        self._fleet = fleet
        self.batcher: Batcher[AnyTicket] = batcher(self._send)
        self._tasks: set[asyncio.Task[None]] = set()
        self._following: dict[RunningBatch[AnyTicket], asyncio.Task[None]] = {}
        fleet.on_change(self._on_change)

    async def close(self) -> None:
        """Take nothing more; whatever waits or is in flight fails with Unavailable."""
        for ticket in self.batcher.close():
            ticket.fail(Unavailable("the service is shutting down: try again"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @abstractmethod
    async def _run(self, batch: RunningBatch[AnyTicket], tickets: Sequence[AnyTicket]) -> None:
        """Ask the models, and settle and answer tickets as their answers come. Raises what the client raises."""

    def _submit(self, ticket: AnyTicket, *, bounded: bool = True) -> None:
        """Queue a ticket.

        Raises Unavailable where no place is left or after `close`, Overloaded where there is no room.
        """
        if self._fleet.hopeless:
            raise self._fleet.unavailable()
        self.batcher.submit(ticket.pending, bounded=bounded)

    def _send(self, batch: RunningBatch[AnyTicket]) -> None:
        task = self._following[batch] = self._start(self._follow(batch))
        # A task that is cancelled before its first step runs nothing of its own, not even what stands under `finally`.
        task.add_done_callback(lambda _: self._end(batch, self._broke_off()))

    async def _follow(self, batch: RunningBatch[AnyTicket]) -> None:
        """A batch, from its request to the end of its last ticket."""
        tickets = [pending.payload for pending in batch.requests]
        failure: ServiceError = self._broke_off()
        try:
            await self._run(batch, tickets)
        except ServiceError as error:
            failure = error
            batch.place.doubt(error)
            log.warning("batch failed", place=batch.place.name, reason=error.message, rows=len(tickets))
        except Exception as error:
            # An answer that cannot be read speaks against the place as much as one that says it failed.
            batch.place.doubt(InferenceFailed(f"{self.peer}'s answer cannot be read: {error!r}"))
            log.exception("batch failed", place=batch.place.name, rows=len(tickets))
        finally:
            self._end(batch, failure)

    def _end(self, batch: RunningBatch[AnyTicket], failure: ServiceError) -> None:
        """Whatever has become of a batch, nothing of it is left; may be called again."""
        if self._following.pop(batch, None) is None:
            return
        for pending in batch.requests:
            self.batcher.settle(pending)
            pending.payload.fail(failure)

    def _broke_off(self) -> Unavailable:
        return Unavailable(f"{self.peer}'s answer broke off: try again")

    def _on_change(self) -> None:
        """A place came or went."""
        if self._fleet.hopeless:
            for ticket in self.batcher.withdraw():
                ticket.fail(self._fleet.unavailable())
        self.batcher.wake()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
