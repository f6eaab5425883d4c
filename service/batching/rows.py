"""The lane to the engine: rows go out in batches of one task, and their updates come back one row at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import closing

import structlog

from deploy.triton.protocol import FinishReason, GenerationBatch, Row, RowUpdate, Sampling, Source, Task
from service.batching.following import FollowedBatch
from service.batching.lane import BatcherMaker, Lane, Ticket
from service.batching.pending import RunningBatch, State
from service.batching.tiers import Tier
from service.errors import InferenceFailed, ServiceError, Unavailable
from service.inference.fleet import Fleet
from service.inference.place import Place

log = structlog.get_logger(__name__)


class RowTicket(Ticket):
    """One row between submission and its last update."""

    def __init__(self, lane: RowLane, row: Row, task: Task, deadline_s: float, tier: Tier) -> None:
        sampling = row.sampling
        answer = lane.batcher.lengths.expected(task, row.source.cost, sampling.min_new_tokens, sampling.max_new_tokens)
        super().__init__(row.source, task, deadline_s, slots=sampling.num_beams, answer=answer, tier=tier)
        self.row, self.task = row, task
        self._lane = lane
        self._news: asyncio.Queue[RowUpdate | ServiceError] = asyncio.Queue()
        self._cancelled = self._ended = False

    async def updates(self) -> AsyncIterator[RowUpdate]:
        """Updates up to the last. Raises DeadlineExceeded, Unavailable or InferenceFailed."""
        while True:
            update = await self._news.get()
            if isinstance(update, ServiceError):
                raise update
            yield update
            if update.finish_reason is not FinishReason.RUNNING:
                return

    def cancel(self) -> None:
        """Give the row up; does nothing where it has finished."""
        if not self._cancelled:
            self._cancelled = True
            self._lane.give_up(self)

    def deliver(self, update: RowUpdate) -> None:
        """News from the engine."""
        if update.finish_reason is FinishReason.ERROR:
            self.fail(InferenceFailed("the engine failed on this request: its log says why"))
        elif update.finish_reason is FinishReason.CANCELLED:
            self.fail(Unavailable("the engine ended this request: it is shutting down"))
        elif not self._ended:
            self._ended = update.finish_reason is not FinishReason.RUNNING
            self._news.put_nowait(update)

    def fail(self, error: ServiceError) -> None:
        """No more news."""
        if not self._ended:
            self._ended = True
            self._news.put_nowait(error)

    def _expire(self) -> None:
        super()._expire()
        self.cancel()


class RowLane(Lane[RowTicket]):
    """Sends rows to the engines and follows them."""

    peer = "the engine"

    def __init__(self, fleet: Fleet, batcher: BatcherMaker) -> None:
        super().__init__(fleet, batcher)
        self._leaving: dict[Place, list[int]] = {}

    def submit(
        self,
        task: Task,
        source: Source,
        sampling: Sampling,
        *,
        stream: bool,
        deadline_s: float,
        tier: Tier = Tier.DEFAULT,
    ) -> RowTicket:
        """Queue a row. Whoever gets the ticket cancels it when nobody waits for the row any more.

        Raises Overloaded where the queue is full, Unavailable where no place is left or after `close`.
        """
        row = Row(row_id=random.getrandbits(62), source=source, sampling=sampling, stream=stream)
        ticket = RowTicket(self, row, task, deadline_s, tier)
        self._submit(ticket)
        return ticket

    def give_up(self, ticket: RowTicket) -> None:
        """Take a row out of the queue, or out of the engine; its slots count until the engine has let it go."""
        pending = ticket.pending
        if pending.state is State.WAITING:
            self.batcher.settle(pending)
        elif pending.state is State.RUNNING:
            assert pending.batch is not None, "a running row is part of a batch"
            place = pending.batch.place
            if place not in self._leaving:
                self._leaving[place] = []
                self._start(self._cancel_leaving(place))
            self._leaving[place].append(ticket.row.row_id)

    async def _run(self, batch: RunningBatch[RowTicket], tickets: Sequence[RowTicket]) -> None:
        place, task = batch.place, tickets[0].task
        flying = {ticket.row.row_id: ticket for ticket in tickets}
        rows = tuple(ticket.row for ticket in tickets)
        with closing(FollowedBatch(self.batcher, batch, task, rows)) as followed:
            async for news, stats in place.client.generate(GenerationBatch(task=task, rows=rows)):
                followed.hear(news, stats)
                for update in news.updates:
                    if update.finish_reason is FinishReason.ERROR:
                        place.doubt(InferenceFailed("the engine failed on a row"))
                    flying[update.row_id].deliver(update)

    async def _cancel_leaving(self, place: Place) -> None:
        """Cancel all rows that are leaving a place now with one request."""
        leaving = self._leaving.pop(place)
        try:
            await place.client.cancel(leaving)
        except ServiceError as error:
            # The rows' own batch fails with the stream it came on; nothing is left to cancel.
            log.warning("cancelling failed", place=place.name, reason=error.message, rows=len(leaving))
