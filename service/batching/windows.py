"""The lane to the stateless `qa` model: windows go out in padded batches, tag scores come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import structlog

from service.batching.batcher import Batcher
from service.batching.queue import Pending
from service.errors import DeadlineExceeded, ServiceError, Unavailable
from service.inference.protocol import InferenceClient

log = structlog.get_logger(__name__)


class WindowTicket:
    """One window between submission and its scores."""

    def __init__(self, input_ids: np.ndarray, deadline_s: float) -> None:
        self.input_ids = input_ids
        self.batch: WindowBatch | None = None
        """What it was sent with."""
        self.emissions: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self.pending = Pending(
            payload=self, tokens=len(input_ids), group="qa", deadline_s=deadline_s, on_deadline=self._expire
        )

    def fail(self, error: ServiceError) -> None:
        """No scores will come."""
        if not self.emissions.done():
            self.emissions.set_exception(error)

    def _expire(self) -> None:
        self.fail(DeadlineExceeded("the request's time is over: send a longer X-Request-Timeout-Ms, or ask for less"))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WindowBatch:
    """Windows on their way to the model and back."""

    tickets: Sequence[WindowTicket]
    task: asyncio.Task[None]

    def leave(self) -> None:
        """Give the batch up when nobody waits for any of it."""
        if all(ticket.emissions.done() for ticket in self.tickets):
            self.task.cancel()


class WindowLane:
    """Sends windows to the model."""

    def __init__(
        self, client: InferenceClient, batcher: Callable[[Callable], Batcher], on_failure: Callable[[], None]
    ) -> None:
        """`batcher` makes the batcher around the given `send`; `on_failure` hears of every failed batch."""
        self._client, self._on_failure = client, on_failure
        self.batcher: Batcher[WindowTicket] = batcher(self._send)
        self._tasks: set[asyncio.Task[None]] = set()

    def submit(self, input_ids: np.ndarray, *, deadline_s: float, bounded: bool) -> asyncio.Future[np.ndarray]:
        """Queue a window: FP32 [S,3] to come. Cancelling the future takes a waiting window out of the queue, and a
        batch whose windows were all cancelled is given up.

        Raises Overloaded where `bounded` and the queue is full, Unavailable after `close`; the future may raise
        DeadlineExceeded, Unavailable or InferenceFailed.
        """
        ticket = WindowTicket(input_ids, deadline_s)
        self.batcher.submit(ticket.pending, bounded=bounded)
        ticket.emissions.add_done_callback(lambda _: self._leave(ticket))
        return ticket.emissions

    async def close(self) -> None:
        """Take nothing more; whatever waits or is in flight fails with Unavailable."""
        for ticket in self.batcher.close():
            ticket.fail(Unavailable("the service is shutting down: try again"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _leave(self, ticket: WindowTicket) -> None:
        """A waiting window leaves the queue; a running one holds its place until its batch is back or given up."""
        if ticket.pending.state is ticket.pending.state.WAITING:
            self.batcher.settle(ticket.pending)
        elif ticket.batch is not None:
            ticket.batch.leave()

    def _send(self, batch: Sequence[Pending[WindowTicket]]) -> None:
        tickets = [pending.payload for pending in batch]
        task = asyncio.create_task(self._run(tickets))
        for ticket in tickets:
            ticket.batch = WindowBatch(tickets=tickets, task=task)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, tickets: Sequence[WindowTicket]) -> None:
        """One batch."""
        started_s = self.batcher.clock.now_s()
        lengths = [len(ticket.input_ids) for ticket in tickets]
        input_ids = np.zeros((len(tickets), max(lengths)), np.int64)
        for row, ticket in zip(input_ids, tickets, strict=True):
            row[: len(ticket.input_ids)] = ticket.input_ids
        inputs: dict[str, np.ndarray] = {"input_ids": input_ids, "lengths": np.array(lengths, np.int32)[:, None]}
        failure: ServiceError = Unavailable("the model's answer broke off: try again")
        try:
            emissions_BS3 = (await self._client.infer("qa", inputs))["emissions"]
            for ticket, emissions, length in zip(tickets, emissions_BS3, lengths, strict=True):
                if not ticket.emissions.done():
                    ticket.emissions.set_result(emissions[:length])
            self.batcher.latency.observe(*input_ids.shape, self.batcher.clock.now_s() - started_s)
        except ServiceError as error:
            failure = error
            self._on_failure()
            log.warning("batch failed", reason=error.message, rows=len(tickets))
        finally:
            for ticket in tickets:
                self.batcher.settle(ticket.pending)
                ticket.fail(failure)
