"""The lane to the engine: rows go out in batches of one task, and their updates come back one row at a time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence

import structlog

from deploy.triton.protocol import EngineStats, FinishReason, GenerationBatch, Row, RowUpdate, Sampling, Source, Task
from service.batching.batcher import Batcher
from service.batching.queue import Pending
from service.errors import DeadlineExceeded, InferenceFailed, ServiceError, Unavailable
from service.inference.protocol import InferenceClient

log = structlog.get_logger(__name__)


class RowTicket:
    """One row between submission and its last update."""

    def __init__(self, lane: RowLane, row: Row, task: Task, deadline_s: float) -> None:
        self.row = row
        self.pending = Pending(
            payload=self,
            tokens=row.source.cost,
            group=task,
            slots=row.sampling.num_beams,
            deadline_s=deadline_s,
            on_deadline=self._expire,
        )
        self.task = task
        self._lane = lane
        self._news: asyncio.Queue[RowUpdate | ServiceError] = asyncio.Queue()
        self._cancelled = False

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
            self._news.put_nowait(InferenceFailed("the engine failed on this request: its log says why"))
        elif update.finish_reason is FinishReason.CANCELLED:
            self._news.put_nowait(Unavailable("the engine ended this request: it is shutting down"))
        else:
            self._news.put_nowait(update)

    def fail(self, error: ServiceError) -> None:
        """No more news."""
        self._news.put_nowait(error)

    def _expire(self) -> None:
        self.fail(DeadlineExceeded("the request's time is over: send a longer X-Request-Timeout-Ms, or ask for less"))
        self.cancel()


class RowLane:
    """Sends rows to the engine and follows them."""

    def __init__(
        self, client: InferenceClient, batcher: Callable[[Callable], Batcher], on_failure: Callable[[], None]
    ) -> None:
        """`batcher` makes the batcher around the given `send`; `on_failure` hears of every failed batch."""
        self._client, self._on_failure = client, on_failure
        self.batcher: Batcher[RowTicket] = batcher(self._send)
        self.stats = EngineStats(slots_used=0, slots_total=0, waiting_rows=0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: list[int] = []

    def submit(self, task: Task, input_ids, sampling: Sampling, *, stream: bool, deadline_s: float) -> RowTicket:
        """Queue a row. Whoever gets the ticket cancels it when nobody waits for the row any more.

        Raises Overloaded where the queue is full, Unavailable after `close`.
        """
        row = Row(row_id=random.getrandbits(62), source=Source(input_ids), sampling=sampling, stream=stream)
        ticket = RowTicket(self, row, task, deadline_s)
        self.batcher.submit(ticket.pending)
        return ticket

    def give_up(self, ticket: RowTicket) -> None:
        """Take a row out of the queue, or out of the engine; its slots count until the engine has let it go."""
        pending = ticket.pending
        if pending.state is pending.state.WAITING:
            self.batcher.settle(pending)
        elif pending.state is pending.state.RUNNING:
            if not self._leaving:
                self._start(self._cancel_leaving())
            self._leaving.append(ticket.row.row_id)

    async def close(self) -> None:
        """Take nothing more; whatever waits or is in flight fails with Unavailable."""
        for ticket in self.batcher.close():
            ticket.fail(Unavailable("the service is shutting down: try again"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _send(self, batch: Sequence[Pending[RowTicket]]) -> None:
        self._start(self._follow([pending.payload for pending in batch]))

    async def _follow(self, tickets: Sequence[RowTicket]) -> None:
        """One batch, from its request to the last update of its last row."""
        prefill_s = 0.0
        flying = {ticket.row.row_id: ticket for ticket in tickets}
        failure: ServiceError = Unavailable("the engine's answer broke off: try again")
        try:
            rows = tuple(ticket.row for ticket in tickets)
            async for news, stats in self._client.generate(GenerationBatch(task=tickets[0].task, rows=rows)):
                self.stats = stats
                for update in news.updates:
                    ticket = flying[update.row_id]
                    if update.timings is not None:
                        prefill_s = max(prefill_s, update.timings.prefill_s)
                    if update.finish_reason is not FinishReason.RUNNING:
                        del flying[update.row_id]
                        self.batcher.settle(ticket.pending)
                    ticket.deliver(update)
            longest = max(row.source.cost for row in rows)
            if prefill_s:  # 0 where every row was cancelled before its turn
                self.batcher.latency.observe(len(rows), longest, prefill_s)
        except ServiceError as error:
            failure = error
            self._on_failure()
            log.warning("batch failed", reason=error.message, rows=len(tickets))
        finally:
            for ticket in flying.values():
                self.batcher.settle(ticket.pending)
                ticket.fail(failure)

    async def _cancel_leaving(self) -> None:
        """Cancel all rows that are leaving now with one request."""
        leaving, self._leaving = self._leaving, []
        try:
            await self._client.cancel(leaving)
        except ServiceError as error:
            # The rows' own batch fails with the stream it came on; nothing is left to cancel.
            log.warning("cancelling failed", reason=error.message, rows=len(leaving))

    def _start(self, work) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
