"""The lane to the stateless `qa` model: windows go out in padded batches, tag scores come back."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence

import numpy as np
import structlog

from deploy.triton.protocol import Source
from service.batching.lane import BatcherMaker, Lane, Ticket
from service.batching.latency import LatencyModel
from service.batching.pending import RunningBatch, State
from service.batching.tiers import Tier
from service.errors import ServiceError
from service.inference.fleet import Fleet
from service.inference.place import Place
from service.inference.protocol import ModelTimes

log = structlog.get_logger(__name__)

MODEL = "qa"


class WindowTicket(Ticket):
    """One window between submission and its scores."""

    def __init__(self, source: Source, flow: Hashable | None, deadline_s: float, tier: Tier) -> None:
        super().__init__(source, MODEL, deadline_s, flow=flow, tier=tier)
        self.emissions: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()

    def fail(self, error: ServiceError) -> None:
        """No scores will come."""
        if not self.emissions.done():
            self.emissions.set_exception(error)


class WindowLane(Lane[WindowTicket]):
    """Sends windows to the model."""

    peer = "the model"

    def __init__(self, fleet: Fleet, batcher: BatcherMaker) -> None:
        super().__init__(fleet, batcher)
        self._times: dict[Place, ModelTimes] = {}
        """What each place's model had run when it was last asked."""

    def submit(
        self,
        source: Source,
        *,
        deadline_s: float,
        bounded: bool = True,
        flow: Hashable | None = None,
        tier: Tier = Tier.DEFAULT,
    ) -> asyncio.Future[np.ndarray]:
        """Queue a window: FP32 [S,3] to come. Windows of one question share a `flow`; the first is `bounded`, which is
        admitted or refused, and the rest follow it. Cancelling the future takes a waiting window
        out of the queue, and a batch whose windows were all cancelled is given up.

        Raises Overloaded where the queue has no room for a bounded one, Unavailable where no place is left or after
        `close`; the future may raise DeadlineExceeded, Unavailable or InferenceFailed.
        """
        ticket = WindowTicket(source, flow, deadline_s, tier)
        self._submit(ticket, bounded=bounded)
        ticket.emissions.add_done_callback(lambda _: self._leave(ticket))
        return ticket.emissions

    def least_s(self, windows: int, tokens: int) -> float:
        """Seconds that so many windows of so many tokens take alone, by what is known; 0 where nothing is."""
        rates = [
            min(load.latency.predict_s(rows, tokens) / rows for rows in (1, 4, 16))
            for load in self.batcher.loads
            if load.place.usable
        ]
        return windows / sum(1 / rate for rate in rates) if rates and min(rates) > 0 else 0.0

    async def _run(self, batch: RunningBatch[WindowTicket], tickets: Sequence[WindowTicket]) -> None:
        input_ids = np.zeros((len(tickets), batch.longest), np.int64)
        for row, ticket in zip(input_ids, tickets, strict=True):
            row[: len(ticket.source.ids)] = ticket.source.ids
        lengths = [len(ticket.source.ids) for ticket in tickets]
        inputs: dict[str, np.ndarray] = {"input_ids": input_ids, "lengths": np.array(lengths, np.int32)[:, None]}
        emissions_BS3 = (await batch.place.client.infer(MODEL, inputs))["emissions"]
        for pending in batch.requests:
            self.batcher.settle(pending)
        self._start(self._learn(batch.place, self.batcher.load_of(batch).latency, *input_ids.shape))
        for ticket, emissions, length in zip(tickets, emissions_BS3, lengths, strict=True):
            if not ticket.emissions.done():
                ticket.emissions.set_result(emissions[:length])
                # An answer takes a millisecond to make. The model would stand still until all are made, if the next
                # batch did not go out after the first few.
                await asyncio.sleep(0)

    async def _learn(self, place: Place, latency: LatencyModel, rows: int, tokens: int) -> None:
        """Ask how long the batch that has just come back was computed.

        The model's account is of all its runs: it tells of this batch only where nothing else ran since the last time.
        """
        try:
            times = await place.client.times(MODEL)
        except ServiceError as error:
            log.debug("the times of a batch are not known", place=place.name, reason=error.message)
            return
        before = self._times.get(place)
        self._times[place] = times
        if before is not None and (ran := times - before).runs == 1 and ran.rows == rows:
            latency.observe(rows, tokens, ran.seconds)

    def _leave(self, ticket: WindowTicket) -> None:
        """A waiting window leaves the queue; a running one holds its place until its batch is back or given up."""
        if ticket.pending.state is State.WAITING:
            self.batcher.settle(ticket.pending)
        batch = ticket.pending.batch
        if batch in self._following and all(each.payload.emissions.done() for each in batch.requests):
            self._following[batch].cancel()
