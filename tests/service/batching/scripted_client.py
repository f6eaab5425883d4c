"""An inference client that does what a test tells it, and rows to send through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

import numpy as np

from deploy.triton.protocol import BatchNews, EngineStats, FinishReason, GenerationBatch, RowTimings, RowUpdate, Task
from service.batching.batcher import Batcher
from service.batching.clock import Clock
from service.batching.latency import TokenRate
from service.batching.policies import BatchLimits, Immediate
from service.batching.queue import RequestQueue
from service.errors import ServiceError
from service.inference.protocol import ServerInfo

STATS = EngineStats(slots_used=1, slots_total=4, waiting_rows=0)


class Flight:
    """A batch that has arrived at the models; the test decides how it goes on."""

    def __init__(self, batch: GenerationBatch) -> None:
        self.batch = batch
        self._news: asyncio.Queue[list[RowUpdate] | Exception | None] = asyncio.Queue()

    @property
    def row_ids(self) -> list[int]:
        return [row.row_id for row in self.batch.rows]

    def report(
        self,
        index: int,
        reason: FinishReason = FinishReason.RUNNING,
        tokens: tuple[int, ...] = (),
        prefill_s: float = 0.0,
    ) -> None:
        """News of one row."""
        timings = None if reason is FinishReason.RUNNING else RowTimings(queue_s=0, prefill_s=prefill_s, decode_s=7)
        update = RowUpdate(
            row_id=self.row_ids[index],
            tokens=np.array(tokens, np.int32),
            finish_reason=reason,
            task=Task.GENERATION,
            timings=timings,
        )
        self._news.put_nowait([update])

    def break_off(self, error: Exception | None = None) -> None:
        """No more news: with an error, or without a word."""
        self._news.put_nowait(error)

    async def updates(self) -> AsyncIterator[tuple[BatchNews, EngineStats]]:
        while (news := await self._news.get()) is not None:
            if isinstance(news, Exception):
                raise news
            yield BatchNews(updates=news), STATS


class ScriptedClient:
    """Batches arrive and stay until the test lets them go on."""

    def __init__(self) -> None:
        self.flights: asyncio.Queue[Flight] = asyncio.Queue()
        self.inferences: asyncio.Queue[tuple[dict[str, np.ndarray], asyncio.Future]] = asyncio.Queue()
        self.cancels: list[list[int]] = []
        self.cancel_error: ServiceError | None = None

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def server(self) -> ServerInfo:
        return ServerInfo(name="scripted", version="1")

    async def infer(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert model == "qa"
        outputs: asyncio.Future[dict[str, np.ndarray]] = asyncio.get_running_loop().create_future()
        self.inferences.put_nowait((inputs, outputs))
        return await outputs

    def generate(self, batch: GenerationBatch) -> AsyncIterator[tuple[BatchNews, EngineStats]]:
        flight = Flight(batch)
        self.flights.put_nowait(flight)
        return flight.updates()

    async def cancel(self, row_ids: Iterable[int]) -> None:
        self.cancels.append(list(row_ids))
        if self.cancel_error is not None:
            raise self.cancel_error

    async def stats(self) -> EngineStats:
        return STATS


class Failures:
    """Counts what a lane reports."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def batcher_maker(clock: Clock, *, slots: int = 4, rows: int = 8) -> Callable[[Callable], Batcher]:
    """What a lane makes its batcher with."""

    def make(send: Callable) -> Batcher:
        return Batcher(
            queue=RequestQueue(10_000),
            policy=Immediate(),
            limits=BatchLimits(rows=rows, tokens=4096),
            slots=slots,
            clock=clock,
            latency=TokenRate(),
            send=send,
        )

    return make


async def until(condition: Callable[[], bool], what: str) -> None:
    """Let the loop go on until a condition holds."""
    try:
        async with asyncio.timeout(60):
            while not condition():  # noqa: ASYNC110 - what is looked at from outside sets no event
                await asyncio.sleep(0.001)
    except TimeoutError:
        raise AssertionError(f"{what} did not happen") from None
