"""What becomes of question answering windows when askers leave, time runs out, models fail and the service closes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from deploy.triton.protocol import Source
from service.batching.clock import LoopClock
from service.batching.latency import BatchTime
from service.batching.windows import WindowLane
from service.errors import DeadlineExceeded, InferenceFailed, Overloaded, ServiceError, Unavailable
from service.inference.fleet import Fleet
from service.inference.protocol import ModelTimes
from tests.service.batching.hand_clock import HandClock
from tests.service.batching.scripted_client import ScriptedClient, SteadyPlace, batcher_maker, until

SLOTS = 4


class Scene:
    """A lane, the model behind it and the clock before it."""

    def __init__(self) -> None:
        self.client, self.clock = ScriptedClient(), HandClock()
        self.place = SteadyPlace(self.client)
        fleet = Fleet([self.place])
        self.lane = WindowLane(fleet, batcher_maker(self.clock, fleet, slots=SLOTS))

    def submit(self, *ids: int, after_s: float = 1e6, bounded: bool = True) -> asyncio.Future[np.ndarray]:
        deadline_s = self.clock.now_s() + after_s
        return self.lane.submit(Source(np.array(ids or (6, 50, 4, 60))), deadline_s=deadline_s, bounded=bounded)

    async def take_off(self) -> tuple[dict[str, np.ndarray], asyncio.Future]:
        """The next batch at the model: its inputs, and the outputs to come."""
        self.clock.turn()
        return await asyncio.wait_for(self.client.inferences.get(), 60)

    def is_idle(self) -> bool:
        batcher = self.lane.batcher
        return (batcher.running, batcher.loads[0].slots, len(batcher.queue), batcher.queue.tokens) == (0, 0, 0, 0)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """Whatever a test does, nothing is left behind."""
    scene = Scene()
    yield scene
    await scene.lane.close()
    assert scene.is_idle()
    assert not scene.lane._tasks
    scene.clock.turn(1e7)
    assert scene.client.inferences.empty(), "sent after the end"


def scores(inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs of a model that says every token's id three times."""
    return {"emissions": np.repeat(inputs["input_ids"][..., None], 3, axis=2).astype(np.float32)}


async def test_windows_are_padded_and_get_back_their_own_length(scene: Scene) -> None:
    futures = [scene.submit(6, 50), scene.submit(6, 51, 52, 53), scene.submit(6, 54, 55)]
    inputs, outputs = await scene.take_off()
    np.testing.assert_array_equal(inputs["input_ids"], [[6, 50, 0, 0], [6, 51, 52, 53], [6, 54, 55, 0]])
    np.testing.assert_array_equal(inputs["lengths"], [[2], [4], [3]])
    assert (inputs["input_ids"].dtype, inputs["lengths"].dtype) == (np.int64, np.int32)
    outputs.set_result(scores(inputs))
    for future, ids in zip(futures, ([6, 50], [6, 51, 52, 53], [6, 54, 55]), strict=True):
        np.testing.assert_array_equal(await future, np.repeat(np.array(ids)[:, None], 3, axis=1))
    await until(scene.is_idle, "the end of the batch")


async def test_the_next_batch_goes_out_before_most_answers_are_made() -> None:
    happened: list[str] = []

    class Watched(ScriptedClient):
        async def infer(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            happened.append("batch")
            return await super().infer(model, inputs)

    client = Watched()
    fleet = Fleet([SteadyPlace(client)])
    lane = WindowLane(fleet, batcher_maker(LoopClock(), fleet, slots=8, ahead=1))

    async def ask() -> None:
        await lane.submit(Source(np.array((6, 50))), deadline_s=LoopClock().now_s() + 600)
        happened.append("answer")

    async def answer() -> None:
        while True:
            inputs, outputs = await client.inferences.get()
            outputs.set_result(scores(inputs))

    answering = asyncio.create_task(answer())
    await asyncio.wait_for(asyncio.gather(*(ask() for _ in range(24))), 60)
    answering.cancel()
    await lane.close()
    assert happened.count("answer") == 24
    assert happened.index("batch", 1) <= 4


async def run_batch(scene: Scene, took: ModelTimes) -> None:
    """One window there and back, after which the model's own account is `took`."""
    scene.submit()
    inputs, outputs = await scene.take_off()
    scene.clock.turn(50)  # in a queue, or on the way, which tells nothing
    scene.client.ran = took
    outputs.set_result(scores(inputs))
    await until(lambda: not scene.lane._tasks, "the end of the batch")


async def test_the_models_own_times_teach_the_latency_model(scene: Scene) -> None:
    latency = scene.lane.batcher.loads[0].latency
    before = latency.predict_s(1, 4)
    await run_batch(scene, ModelTimes(runs=7, rows=70, seconds=700.0))
    assert latency.predict_s(1, 4) == before, "what ran before anybody looked is nobody's"
    await run_batch(scene, ModelTimes(runs=8, rows=71, seconds=709.0))
    told = BatchTime()
    told.observe(1, 4, 9.0)
    assert latency.predict_s(1, 4) == told.predict_s(1, 4) > before


async def test_what_others_ran_at_the_model_teaches_nothing(scene: Scene) -> None:
    latency = scene.lane.batcher.loads[0].latency
    before = latency.predict_s(1, 4)
    await run_batch(scene, ModelTimes(runs=1, rows=1, seconds=1.0))
    for took in (ModelTimes(runs=3, rows=2, seconds=9.0), ModelTimes(runs=4, rows=9, seconds=19.0),
                 ModelTimes(runs=1, rows=1, seconds=1.0)):  # fmt: skip
        await run_batch(scene, took)
    assert latency.predict_s(1, 4) == before


async def test_an_asker_that_leaves_takes_a_waiting_window_along(scene: Scene) -> None:
    for _ in range(SLOTS):
        scene.submit()
    inputs, outputs = await scene.take_off()
    leaving, staying = scene.submit(6, 70), scene.submit(6, 71)
    leaving.cancel()
    await until(lambda: len(scene.lane.batcher.queue) == 1, "leaving the queue")
    outputs.set_result(scores(inputs))
    await until(lambda: scene.lane.batcher.running == 0, "the end of the batch")
    inputs, outputs = await scene.take_off()
    np.testing.assert_array_equal(inputs["input_ids"], [[6, 71]])
    outputs.set_result(scores(inputs))
    assert (await staying).shape == (2, 3)


async def test_a_window_that_runs_holds_its_place_until_its_batch_is_back(scene: Scene) -> None:
    leaving, staying = scene.submit(), scene.submit()
    inputs, outputs = await scene.take_off()
    leaving.cancel()
    scene.clock.turn()
    assert scene.lane.batcher.running == 2
    outputs.set_result(scores(inputs))
    assert (await staying).shape == (4, 3)
    await until(scene.is_idle, "the end of the batch")


async def test_a_batch_that_nobody_waits_for_any_more_is_given_up(scene: Scene) -> None:
    windows = [scene.submit(), scene.submit(after_s=2)]
    _, outputs = await scene.take_off()
    windows[0].cancel()
    await until(lambda: windows[0].done(), "the first to leave")
    assert not outputs.cancelled()
    scene.clock.turn(3)
    with pytest.raises(DeadlineExceeded):
        await windows[1]
    await until(scene.is_idle, "room for others")
    assert outputs.cancelled()


async def test_a_batch_that_is_given_up_before_it_has_begun_leaves_nothing_behind(scene: Scene) -> None:
    leaving = scene.submit()
    # Its window still waits when it is sent; that nobody waits for it is heard before the batch takes its first step.
    leaving.cancel()
    scene.clock.turn()
    await until(scene.is_idle, "room for others")
    assert not scene.lane._following


async def test_a_deadline_ends_a_window_that_waits(scene: Scene) -> None:
    for _ in range(SLOTS):
        scene.submit()
    await scene.take_off()
    waiting = scene.submit(after_s=2)
    scene.clock.turn(3)
    assert len(scene.lane.batcher.queue) == 0
    with pytest.raises(DeadlineExceeded, match="X-Request-Timeout-Ms"):
        await waiting


async def test_a_deadline_ends_a_window_that_runs_and_not_its_mates(scene: Scene) -> None:
    hurried, patient = scene.submit(after_s=2), scene.submit()
    inputs, outputs = await scene.take_off()
    scene.clock.turn(3)
    with pytest.raises(DeadlineExceeded):
        await hurried
    assert scene.lane.batcher.running == 2
    outputs.set_result(scores(inputs))
    assert (await patient).shape == (4, 3)
    await until(scene.is_idle, "the end of the batch")


@pytest.mark.parametrize(
    "error", [Unavailable("not reached"), InferenceFailed("the model failed")], ids=lambda error: type(error).__name__
)
async def test_a_failing_batch_fails_its_windows_and_no_others(scene: Scene, error: ServiceError) -> None:
    failing = [scene.submit(), scene.submit()]
    _, outputs = await scene.take_off()
    other = scene.submit()
    other_inputs, other_outputs = await scene.take_off()
    outputs.set_exception(error)
    assert await asyncio.gather(*failing, return_exceptions=True) == [error, error]
    assert scene.place.doubts == 1
    other_outputs.set_result(scores(other_inputs))
    assert (await other).shape == (4, 3)


async def test_a_model_without_scores_is_an_error_and_no_cancellation(scene: Scene) -> None:
    future = scene.submit()
    _, outputs = await scene.take_off()
    outputs.set_result({"something else": np.zeros(1)})
    with pytest.raises(Unavailable, match="broke off"):
        await future
    await until(scene.is_idle, "the end of the batch")


async def test_the_first_window_is_admitted_and_the_rest_follows(scene: Scene) -> None:
    for _ in range(SLOTS):
        scene.submit()
    await scene.take_off()
    scene.submit(*range(16, 9000))
    with pytest.raises(Overloaded):
        scene.submit(*range(16, 2000))
    rest = scene.submit(*range(16, 2000), bounded=False)
    assert len(scene.lane.batcher.queue) == 2
    rest.cancel()
    await until(lambda: len(scene.lane.batcher.queue) == 1, "leaving the queue")


async def test_closing_fails_what_runs_and_what_waits_and_takes_nothing_more(scene: Scene) -> None:
    windows = [scene.submit() for _ in range(SLOTS)]
    await scene.take_off()
    windows.append(scene.submit())
    await scene.lane.close()
    for future in windows:
        with pytest.raises(Unavailable, match="shutting down"):
            await future
    assert scene.is_idle()
    with pytest.raises(Unavailable, match="shutting down"):
        scene.submit()


async def test_closing_reaches_a_batch_that_has_not_begun(scene: Scene) -> None:
    future = scene.submit()
    scene.clock.turn()
    assert scene.lane.batcher.running == 1
    await scene.lane.close()
    with pytest.raises(Unavailable):
        await future
