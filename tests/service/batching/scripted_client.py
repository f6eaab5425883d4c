"""An inference client that does what a test tells it, and rows to send through it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable

import numpy as np

from deploy.triton.protocol import (
    BatchNews,
    EngineStats,
    FinishReason,
    GenerationBatch,
    PrefillTime,
    RowTimings,
    RowUpdate,
    Task,
)
from service.batching.batcher import Batcher
from service.batching.clock import Clock
from service.batching.latency import BatchTime
from service.batching.load import PlaceLoad
from service.batching.pending import RunningBatch
from service.batching.policies import BatchLimits, Immediate, Policy
from service.batching.queue import RequestQueue
from service.errors import ServiceError
from service.inference.fleet import Fleet
from service.inference.place import Place, Standing
from service.inference.protocol import BundleIdentity, EngineCapacity, InferenceClient, ModelTimes, ServerInfo

STATS = EngineStats(slots_used=1, slots_total=4, waiting_rows=0)
BUNDLE = BundleIdentity(name="scripted", sha256="0" * 64)
CAPACITY = EngineCapacity(slots=4, prefill_tokens=2048, max_source_tokens=2048, max_target_tokens=512)
SPECIAL = {"<generation>": 5, "<qa>": 6, "<summary>": 7, "<s>": 1, "<sep>": 4}


class Flight:
    """A batch that has arrived at the models; the test decides how it goes on."""

    def __init__(self, batch: GenerationBatch) -> None:
        self.batch = batch
        self._news: asyncio.Queue[BatchNews | Exception | None] = asyncio.Queue()

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
        self._news.put_nowait(BatchNews(updates=[update]))

    def prefilled(self, rows: int, tokens: int, seconds: float) -> None:
        """Some rows of the batch were encoded together."""
        self._news.put_nowait(BatchNews(updates=[], prefills=(PrefillTime(rows=rows, tokens=tokens, seconds=seconds),)))

    def break_off(self, error: Exception | None = None) -> None:
        """No more news: with an error, or without a word."""
        self._news.put_nowait(error)

    async def updates(self) -> AsyncIterator[tuple[BatchNews, EngineStats]]:
        while (news := await self._news.get()) is not None:
            if isinstance(news, Exception):
                raise news
            yield news, STATS


class ScriptedClient:
    """Batches arrive and stay until the test lets them go on."""

    def __init__(self) -> None:
        self.flights: asyncio.Queue[Flight] = asyncio.Queue()
        self.inferences: asyncio.Queue[tuple[dict[str, np.ndarray], asyncio.Future]] = asyncio.Queue()
        self.cancels: list[list[int]] = []
        self.cancel_error: ServiceError | None = None
        self.ran = ModelTimes(runs=0, rows=0, seconds=0.0)
        """What `qa` says that it has run."""

    async def start(self, on_lost: Callable[[ServiceError], None]) -> None: ...

    async def close(self) -> None: ...

    async def server(self) -> ServerInfo:
        return ServerInfo(name="scripted", version="1", bundle=BUNDLE, engine=CAPACITY)

    async def infer(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        assert model == "qa"
        outputs: asyncio.Future[dict[str, np.ndarray]] = asyncio.get_running_loop().create_future()
        self.inferences.put_nowait((inputs, outputs))
        return await outputs

    async def times(self, model: str) -> ModelTimes:
        assert model == "qa"
        return self.ran

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


class SteadyPlace(Place):
    """A place that stays ready whatever fails there, and counts how often something did."""

    def __init__(self, client: InferenceClient, name: str = "scripted") -> None:
        super().__init__(name, client, BUNDLE, SPECIAL, timeout_s=5.0)
        self.standing = Standing.READY
        self.doubts = 0

    def doubt(self, error: ServiceError) -> None:
        self.doubts += 1


def batcher_maker(
    clock: Clock,
    fleet: Fleet,
    *,
    slots: int = 4,
    rows: int = 8,
    ahead: int | None = None,
    policy: Policy | None = None,
) -> Callable[[Callable[[RunningBatch], None]], Batcher]:
    """What a lane makes its batcher with."""

    def make(send: Callable[[RunningBatch], None]) -> Batcher:
        return Batcher(
            queue=RequestQueue(10_000),
            policy=policy or Immediate(),
            limits=BatchLimits(rows=rows, tokens=4096),
            loads=[
                PlaceLoad(place=place, capacity=lambda _: slots, latency=BatchTime(), ahead=ahead)
                for place in fleet.places
            ],
            clock=clock,
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
