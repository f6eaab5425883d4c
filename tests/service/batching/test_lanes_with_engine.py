"""Both lanes in front of a real engine: its own answers, and nothing left in it whoever leaves."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings
from deploy.triton.protocol import BatchNews, FinishReason, GenerationBatch, Row, Sampling, Source, Task
from service.batching.clock import LoopClock
from service.batching.rows import RowLane, RowTicket
from service.batching.windows import WindowLane
from service.errors import DeadlineExceeded, ServiceError, Unavailable
from service.inference.fleet import Fleet
from service.inference.local import LocalClient
from tests.service.batching.scripted_client import SteadyPlace, batcher_maker, until

SETTINGS = EngineSettings(slots=6, threads=1, verify=False)
LONG = Sampling(max_new_tokens=400, min_new_tokens=400, temperature=0.0)


class Scene:
    """Both lanes in front of one engine."""

    def __init__(self, client: LocalClient) -> None:
        self.client, self.place = client, SteadyPlace(client)
        fleet = Fleet([self.place])
        self.rows = RowLane(fleet, batcher_maker(LoopClock(), fleet, slots=8, ahead=1))
        self.windows = WindowLane(fleet, batcher_maker(LoopClock(), fleet, slots=8, ahead=2))

    def submit(self, sampling: Sampling, *, after_s: float = 1e4, task: Task = Task.GENERATION, **fields) -> RowTicket:
        source = Source(fields.pop("source", np.array([5, 60, 70])))
        deadline_s = asyncio.get_running_loop().time() + after_s
        return self.rows.submit(task, source, sampling, stream=fields.pop("stream", True), deadline_s=deadline_s)

    async def until_idle(self) -> None:
        for batcher in (self.rows.batcher, self.windows.batcher):
            await until(lambda batcher=batcher: not (batcher.running or batcher.queue), "the lane's rest")
            assert (batcher.loads[0].slots, batcher.queue.tokens) == (0, 0)
        stats = await self.client.stats()
        assert (stats.slots_used, stats.waiting_rows) == (0, 0)


@pytest.fixture
async def scene(nano_bundle: Path) -> AsyncIterator[Scene]:
    client = LocalClient(nano_bundle, SETTINGS)
    await client.start()
    scene = Scene(client)
    yield scene
    await scene.rows.close()
    await scene.windows.close()
    await client.close()


def source_of(number: int) -> np.ndarray:
    source = np.random.default_rng(number)
    return np.concatenate([[5], source.integers(16, 32_000, source.integers(1, 150))])


async def tokens_of(ticket: RowTicket) -> list[int]:
    return [token async for update in ticket.updates() for token in update.tokens.tolist()]


async def test_answers_are_the_engines_own(scene: Scene, nano_bundle: Path) -> None:
    samplings = [
        Sampling(max_new_tokens=10, temperature=0.0),
        Sampling(max_new_tokens=7, seed=3, top_p=0.9),
        Sampling(max_new_tokens=6, num_beams=3),
    ]
    rows = [(number, samplings[number % 3], Task.SUMMARY if number % 2 else Task.GENERATION) for number in range(18)]
    expected: dict[int, list[int]] = {number: [] for number, _, _ in rows}

    def keep(news: BatchNews) -> None:
        for update in news.updates:
            expected[update.row_id].extend(update.tokens.tolist())

    engine = Engine(nano_bundle, SETTINGS)
    for number, sampling, task in rows:
        row = Row(row_id=number, source=Source(source_of(number)), sampling=sampling)
        engine.submit(GenerationBatch(task=task, rows=(row,)), keep)
        while engine.step():
            pass
    tickets = [
        scene.submit(sampling, task=task, source=source_of(number), stream=number % 4 < 2)
        for number, sampling, task in rows
    ]
    found = await asyncio.gather(*(tokens_of(ticket) for ticket in tickets))
    assert dict(enumerate(found)) == expected
    assert all(expected.values())
    await scene.until_idle()


async def test_a_cancelled_row_frees_its_slots_and_the_next_gets_in(scene: Scene) -> None:
    tickets = [scene.submit(LONG) for _ in range(8)]
    late = scene.submit(Sampling(max_new_tokens=3, min_new_tokens=3))
    for ticket in tickets[:6]:
        await anext(ticket.updates())
    assert (scene.place.stats.slots_used, len(scene.rows.batcher.queue)) == (6, 1)
    for ticket in tickets:
        ticket.cancel()
    assert len(await tokens_of(late)) == 3
    await scene.until_idle()


async def test_a_deadline_ends_a_row_and_frees_its_slot(scene: Scene) -> None:
    ticket = scene.submit(LONG, after_s=0.05)
    with pytest.raises(DeadlineExceeded):
        await tokens_of(ticket)
    await scene.until_idle()


async def test_closing_with_rows_in_flight_and_waiting_tells_them_all(scene: Scene) -> None:
    tickets = [scene.submit(LONG) for _ in range(10)]
    await anext(tickets[0].updates())
    await scene.rows.close()
    for ticket in tickets:
        with pytest.raises(Unavailable):
            await tokens_of(ticket)
    assert (scene.rows.batcher.running, len(scene.rows.batcher.queue)) == (0, 0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_an_engine_that_dies_fails_its_rows(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    tickets = [scene.submit(LONG) for _ in range(10)]
    await anext(tickets[0].updates())

    def broken() -> bool:
        raise SystemExit

    monkeypatch.setattr(scene.client._engine, "step", broken)
    for ticket in tickets:
        with pytest.raises(Unavailable, match="the decode loop has ended"):
            await tokens_of(ticket)
    assert scene.place.doubts >= 2, "those in flight, and those that came after"
    assert (scene.rows.batcher.running, len(scene.rows.batcher.queue)) == (0, 0)


async def test_traffic_of_which_a_third_leaves_midway_leaves_nothing_behind(scene: Scene) -> None:
    dice = random.Random(0)

    async def client(number: int) -> FinishReason | type[ServiceError] | str:
        sampling = Sampling(
            max_new_tokens=dice.randint(1, 25), seed=number, num_beams=dice.choice([1, 1, 1, 3]), top_p=0.9
        )
        task = dice.choice([Task.GENERATION, Task.SUMMARY, Task.AUTO])
        after_s = 0.02 if number % 10 == 0 else 1e4
        ticket = scene.submit(sampling, after_s=after_s, task=task, source=source_of(number), stream=number % 2 == 0)
        leaves_after = dice.randint(0, 3) if number % 3 == 0 else 1000
        try:
            if leaves_after == 0:
                return "left"
            reason = FinishReason.RUNNING
            async for update in ticket.updates():
                reason, leaves_after = update.finish_reason, leaves_after - 1
                if leaves_after == 0:
                    return "left"
            return reason
        except ServiceError as error:
            return type(error)
        finally:
            ticket.cancel()

    async with asyncio.timeout(120):
        outcomes = await asyncio.gather(*(client(number) for number in range(120)))
    assert {"left", FinishReason.LENGTH} <= set(outcomes)
    assert set(outcomes) <= {"left", FinishReason.LENGTH, FinishReason.STOP, DeadlineExceeded}
    await scene.until_idle()
    assert scene.place.doubts == 0


async def test_windows_score_alike_alone_and_in_batches(scene: Scene) -> None:
    sources = [np.concatenate([[6], source_of(number)]) for number in range(9)]
    deadline_s = asyncio.get_running_loop().time() + 1e4
    together = await asyncio.gather(
        *(scene.windows.submit(Source(source), deadline_s=deadline_s) for source in sources)
    )
    for source, scores in zip(sources, together, strict=True):
        inputs = {"input_ids": source[None], "lengths": np.array([[len(source)]], np.int32)}
        alone = (await scene.client.infer("qa", inputs))["emissions"][0]
        np.testing.assert_allclose(scores, alone, atol=1e-4 * max(1.0, float(np.abs(alone).max())))
    await scene.until_idle()
