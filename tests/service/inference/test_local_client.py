"""The models in the gateway's process: answers, errors, and the end of the decode loop."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings
from deploy.triton.manifest import BundleError, bundle_digest
from deploy.triton.protocol import (
    BatchNews,
    EngineStats,
    FinishReason,
    GenerationBatch,
    Row,
    RowUpdate,
    Sampling,
    Source,
    Task,
)
from service.errors import InferenceFailed, Unavailable
from service.inference.local import LocalClient

SETTINGS = EngineSettings(slots=4, threads=1, verify=False)
WINDOW = {"input_ids": np.array([[6, 40, 4, 50, 60]]), "lengths": np.array([[5]], np.int32)}


def make_batch(*row_ids: int, max_new_tokens: int = 8, **fields) -> GenerationBatch:
    sampling = Sampling(max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens, temperature=0.0)
    rows = (
        Row(row_id=each, source=Source(np.array([5, 100 + each, 7 * each + 50])), sampling=sampling, **fields)
        for each in row_ids
    )
    return GenerationBatch(task=Task.GENERATION, rows=tuple(rows))


@pytest.fixture
async def client(nano_bundle: Path) -> AsyncIterator[LocalClient]:
    client = LocalClient(nano_bundle, SETTINGS)
    await client.start()
    yield client
    await client.close()


async def collect(client: LocalClient, batch: GenerationBatch) -> tuple[dict[int, list[int]], list[FinishReason]]:
    tokens: dict[int, list[int]] = {row.row_id: [] for row in batch.rows}
    reasons: list[FinishReason] = []
    async for news, _ in client.generate(batch):
        for update in news.updates:
            tokens[update.row_id].extend(update.tokens.tolist())
            if update.finish_reason is not FinishReason.RUNNING:
                reasons.append(update.finish_reason)
    return tokens, reasons


async def first_news(client: LocalClient, batch: GenerationBatch) -> tuple[asyncio.Task, list[RowUpdate]]:
    """A batch that goes on in a task, after its first news has come."""
    arrived: asyncio.Future[list[RowUpdate]] = asyncio.get_running_loop().create_future()

    async def follow() -> list[RowUpdate]:
        finals = []
        async for news, _ in client.generate(batch):
            if not arrived.done():
                arrived.set_result(news.updates)
            finals += [update for update in news.updates if update.finish_reason is not FinishReason.RUNNING]
        return finals

    task = asyncio.create_task(follow())
    await asyncio.wait([task, arrived], return_when=asyncio.FIRST_COMPLETED)
    return task, arrived.result()


async def test_answers_are_the_engines_own(client: LocalClient, nano_bundle: Path) -> None:
    engine = Engine(nano_bundle, SETTINGS)
    expected: dict[int, list[int]] = {1: [], 2: [], 3: []}

    def keep(news: BatchNews) -> None:
        for update in news.updates:
            expected[update.row_id].extend(update.tokens.tolist())

    engine.submit(make_batch(1, 2, 3), keep)
    while engine.step():
        pass
    together, one = await asyncio.gather(collect(client, make_batch(1, 3, stream=True)), collect(client, make_batch(2)))
    assert {**together[0], **one[0]} == expected
    assert {*together[1], *one[1]} == {FinishReason.LENGTH}


async def test_stateless_graphs_run_and_their_errors_are_told(client: LocalClient) -> None:
    scores = await client.infer("qa", WINDOW)
    assert scores["emissions"].shape == (1, 5, 3)
    for model, inputs, reason in (
        ("qa", {**WINDOW, "input_ids": np.array([[99_999]])}, "qa failed"),
        ("qa", {"input_ids": WINDOW["input_ids"]}, "qa failed"),
        ("oracle", WINDOW, "has no graph 'oracle'"),
    ):
        with pytest.raises(InferenceFailed, match=reason):
            await client.infer(model, inputs)
    again = await client.infer("qa", WINDOW)
    np.testing.assert_array_equal(again["emissions"], scores["emissions"])


async def test_times_count_what_ran(client: LocalClient) -> None:
    before = await client.times("qa")
    await client.infer("qa", {name: np.repeat(each, 3, axis=0) for name, each in WINDOW.items()})
    ran = await client.times("qa") - before
    assert (ran.runs, ran.rows) == (1, 3)
    assert ran.seconds > 0


async def test_a_cancelled_inference_ends_when_its_run_has_ended(
    client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()
    run = LocalClient._run

    def slow(*arguments) -> dict[str, np.ndarray]:
        begun.set()
        may_end.wait(60)
        try:
            return run(*arguments)
        finally:
            ended.set()

    monkeypatch.setattr(LocalClient, "_run", slow)
    running = asyncio.create_task(client.infer("qa", WINDOW))
    queued = asyncio.create_task(client.infer("qa", WINDOW))
    await asyncio.to_thread(begun.wait, 60)
    for each in (queued, running):
        each.cancel()
    done, _ = await asyncio.wait([running, queued], timeout=0.1)
    assert done == {queued}, "one that has not begun leaves at once, one that runs when its thread is free"
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ended.is_set()


async def test_a_batch_that_the_engine_refuses_fails_alone(client: LocalClient) -> None:
    bad = GenerationBatch(
        task=Task.GENERATION,
        rows=(Row(row_id=9, source=Source(np.array([99_999])), sampling=Sampling(max_new_tokens=4)),),
    )
    refused, good = await asyncio.gather(collect(client, bad), collect(client, make_batch(1)), return_exceptions=True)
    assert isinstance(refused, InferenceFailed)
    assert "the id 99999" in refused.message
    assert isinstance(good, tuple)
    assert len(good[0][1]) == 8


async def test_statistics_show_rows_in_slots_and_waiting_ones(client: LocalClient) -> None:
    assert await client.stats() == EngineStats(slots_used=0, slots_total=4, waiting_rows=0)
    task, _ = await first_news(client, make_batch(*range(1, 7), max_new_tokens=200, stream=True))
    stats = await client.stats()
    assert (stats.slots_used, stats.slots_total, stats.waiting_rows) == (4, 4, 2)
    await client.cancel(range(1, 7))
    assert {update.finish_reason for update in await task} == {FinishReason.CANCELLED}
    stats = await client.stats()
    assert (stats.slots_used, stats.slots_total, stats.waiting_rows) == (0, 4, 0)


async def test_cancelling_knows_only_rows_in_flight(client: LocalClient) -> None:
    await client.cancel([12345])
    assert (await collect(client, make_batch(1)))[1] == [FinishReason.LENGTH]


async def test_it_names_what_answers(client: LocalClient, nano_bundle: Path) -> None:
    found = await client.server()
    assert found.name == "onnxruntime (in process)"
    assert found.bundle.sha256 == bundle_digest(nano_bundle)
    assert found.engine.slots == SETTINGS.slots


async def test_closing_ends_rows_and_refuses_whatever_comes_later(nano_bundle: Path) -> None:
    client = LocalClient(nano_bundle, SETTINGS)
    await client.start()
    task, _ = await first_news(client, make_batch(1, 2, max_new_tokens=400, stream=True))
    await client.close()
    assert [update.finish_reason for update in await task] == [FinishReason.CANCELLED] * 2
    for call in (client.server(), client.infer("qa", WINDOW), collect(client, make_batch(3))):
        with pytest.raises(Unavailable, match="the decode loop has ended"):
            await call


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_decode_loop_that_dies_fails_whoever_waits_for_it(
    client: LocalClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, _ = await first_news(client, make_batch(1, max_new_tokens=400, stream=True))

    def broken() -> bool:
        raise MemoryError("no room")

    monkeypatch.setattr(client._engine, "step", broken)
    with pytest.raises(Unavailable, match="the decode loop has ended: restart the service"):
        await task
    for call in (client.server(), collect(client, make_batch(3))):
        with pytest.raises(Unavailable, match="the decode loop has ended"):
            await call


@pytest.fixture
def damaged_bundle(nano_bundle: Path, tmp_path: Path) -> Path:
    """The nano bundle with one byte less."""
    folder = Path(shutil.copytree(nano_bundle, tmp_path / "damaged"))
    graph = next(folder.rglob("encoder.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    return folder


async def test_a_damaged_bundle_does_not_start(damaged_bundle: Path) -> None:
    client = LocalClient(damaged_bundle, EngineSettings(slots=4, threads=1))
    with pytest.raises(BundleError, match=r"encoder\.onnx has \d+ bytes"):
        await client.start()
