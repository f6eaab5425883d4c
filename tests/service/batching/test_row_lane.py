"""What becomes of rows when clients leave, time runs out, models fail and the service closes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from deploy.triton.protocol import FinishReason, Sampling, Source, Task
from service.batching.latency import BatchTime
from service.batching.rows import RowLane, RowTicket
from service.errors import DeadlineExceeded, InferenceFailed, ServiceError, Unavailable
from service.inference.fleet import Fleet
from tests.service.batching.hand_clock import HandClock
from tests.service.batching.scripted_client import STATS, Flight, ScriptedClient, SteadyPlace, batcher_maker, until

SLOTS = 4
MODEL_ERRORS = [Unavailable("the stream broke"), InferenceFailed("the model refused")]


class Scene:
    """A lane, the models behind it and the clock before it."""

    def __init__(self) -> None:
        self.client, self.clock = ScriptedClient(), HandClock()
        self.place = SteadyPlace(self.client)
        fleet = Fleet([self.place])
        self.lane = RowLane(fleet, batcher_maker(self.clock, fleet, slots=SLOTS))

    def submit(self, *, after_s: float = 1e6, beams: int = 1) -> RowTicket:
        return self.lane.submit(
            Task.GENERATION,
            Source(np.array([5, 60, 70])),
            Sampling(max_new_tokens=8, num_beams=beams),
            stream=True,
            deadline_s=self.clock.now_s() + after_s,
        )

    async def take_off(self) -> Flight:
        """The next batch at the models."""
        self.clock.turn()
        return await asyncio.wait_for(self.client.flights.get(), 60)

    @property
    def taken_slots(self) -> int:
        return self.lane.batcher.loads[0].slots

    def is_idle(self) -> bool:
        batcher = self.lane.batcher
        return (batcher.running, self.taken_slots, len(batcher.queue), batcher.queue.tokens) == (0, 0, 0, 0)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    """Whatever a test does, nothing is left behind."""
    scene = Scene()
    yield scene
    await scene.lane.close()
    assert scene.is_idle()
    assert not scene.lane._tasks
    scene.clock.turn(1e7)
    assert scene.client.flights.empty(), "sent after the end"


async def outcome(ticket: RowTicket) -> tuple[list[int], FinishReason | ServiceError]:
    """All tokens of a row, and how it ended."""
    tokens: list[int] = []
    try:
        async with asyncio.timeout(60):
            async for update in ticket.updates():
                tokens.extend(update.tokens.tolist())
    except ServiceError as error:
        return tokens, error
    return tokens, update.finish_reason


async def test_news_reach_the_row_that_they_are_about(scene: Scene) -> None:
    tickets = [scene.submit() for _ in range(2)]
    flight = await scene.take_off()
    assert flight.row_ids == [ticket.row.row_id for ticket in tickets]
    flight.report(1, tokens=(7,))
    flight.report(0, tokens=(1,))
    flight.report(1, FinishReason.STOP, (8, 9))
    flight.report(0, FinishReason.LENGTH, (2,))
    flight.break_off()
    assert await outcome(tickets[0]) == ([1, 2], FinishReason.LENGTH)
    assert await outcome(tickets[1]) == ([7, 8, 9], FinishReason.STOP)
    await until(scene.is_idle, "the end of the batch")
    assert scene.place.stats == STATS
    assert scene.place.doubts == 0


async def test_a_row_that_finishes_frees_its_slot_before_its_batch_does(scene: Scene) -> None:
    tickets = [scene.submit() for _ in range(SLOTS)]
    flight = await scene.take_off()
    scene.submit()
    flight.report(2, FinishReason.STOP)
    await outcome(tickets[2])
    late = await scene.take_off()
    assert len(late.batch.rows) == 1
    assert scene.taken_slots == SLOTS


async def test_every_prefill_teaches_the_latency_model_at_once(scene: Scene) -> None:
    tickets = [scene.submit() for _ in range(3)]
    latency = scene.lane.batcher.loads[0].latency
    before = latency.predict_s(2, 3)
    flight = await scene.take_off()
    scene.clock.turn(50)  # on the way, which tells nothing
    flight.prefilled(2, tokens=3, seconds=9)
    told = BatchTime()
    told.observe(2, 3, 9)
    assert told.predict_s(2, 3) > before
    await until(lambda: latency.predict_s(2, 3) == told.predict_s(2, 3), "the first lesson, long before the last token")
    flight.prefilled(1, tokens=3, seconds=4.5)
    told.observe(1, 3, 4.5)
    await until(lambda: latency.predict_s(2, 3) == told.predict_s(2, 3), "the second lesson")
    for index in range(3):
        flight.report(index, FinishReason.STOP, prefill_s=50)
    await asyncio.gather(*(outcome(ticket) for ticket in tickets))
    assert latency.predict_s(2, 3) == told.predict_s(2, 3), "what rows say of themselves is no batch's"


async def test_a_cancelled_row_that_waits_is_never_sent(scene: Scene) -> None:
    running = scene.submit(beams=SLOTS)
    first = await scene.take_off()
    waiting, other = scene.submit(), scene.submit()
    waiting.cancel()
    assert len(scene.lane.batcher.queue) == 1
    first.report(0, FinishReason.STOP)
    await outcome(running)
    assert (await scene.take_off()).row_ids == [other.row.row_id]
    assert scene.client.cancels == []


async def test_a_cancelled_row_counts_until_the_engine_lets_it_go(scene: Scene) -> None:
    ticket = scene.submit(beams=3)
    flight = await scene.take_off()
    ticket.cancel()
    ticket.cancel()
    await until(lambda: bool(scene.client.cancels), "the request to cancel")
    assert scene.client.cancels == [[ticket.row.row_id]]
    assert scene.taken_slots == 3
    flight.report(0, FinishReason.CANCELLED)
    await until(scene.is_idle, "the slots' return")


async def test_rows_that_leave_together_are_cancelled_with_one_request(scene: Scene) -> None:
    tickets = [scene.submit() for _ in range(SLOTS)]
    await scene.take_off()
    for ticket in tickets[:3]:
        ticket.cancel()
    await until(lambda: bool(scene.client.cancels), "the first request to cancel")
    tickets[3].cancel()
    await until(lambda: len(scene.client.cancels) == 2, "the second request to cancel")
    assert scene.client.cancels == [[ticket.row.row_id for ticket in part] for part in (tickets[:3], tickets[3:])]


@pytest.mark.parametrize("error", MODEL_ERRORS, ids=lambda error: type(error).__name__)
async def test_a_cancel_that_fails_costs_the_slot_only_until_the_row_ends(scene: Scene, error: ServiceError) -> None:
    scene.client.cancel_error = error
    ticket, other = scene.submit(), scene.submit()
    flight = await scene.take_off()
    ticket.cancel()
    await until(lambda: bool(scene.client.cancels), "the request to cancel")
    assert scene.taken_slots == 2
    flight.report(0, FinishReason.LENGTH, (1, 2))
    flight.report(1, FinishReason.STOP, (3,))
    assert await outcome(other) == ([3], FinishReason.STOP)
    await until(scene.is_idle, "the end of the batch")


async def test_a_cancel_that_fails_with_the_stream_settles_with_it(scene: Scene) -> None:
    scene.client.cancel_error = Unavailable("the stream broke")
    ticket = scene.submit()
    flight = await scene.take_off()
    ticket.cancel()
    await until(lambda: bool(scene.client.cancels), "the request to cancel")
    flight.break_off(Unavailable("the stream broke"))
    await until(scene.is_idle, "the end of the batch")


async def test_a_deadline_ends_a_row_that_waits(scene: Scene) -> None:
    scene.submit(beams=SLOTS)
    await scene.take_off()
    waiting = scene.submit(after_s=2)
    scene.clock.turn(1.9)
    assert len(scene.lane.batcher.queue) == 1
    scene.clock.turn(0.2)
    assert len(scene.lane.batcher.queue) == 0
    tokens, error = await outcome(waiting)
    assert tokens == []
    assert isinstance(error, DeadlineExceeded)
    assert "X-Request-Timeout-Ms" in error.message
    assert scene.client.cancels == []


async def test_a_deadline_ends_a_row_that_runs_and_its_slot_counts_until_the_engine_lets_it_go(scene: Scene) -> None:
    ticket = scene.submit(after_s=2)
    flight = await scene.take_off()
    flight.report(0, tokens=(1,))
    await until(lambda: ticket._news.qsize() == 1, "the first news")
    scene.clock.turn(3)
    tokens, error = await outcome(ticket)
    assert tokens == [1]
    assert isinstance(error, DeadlineExceeded)
    await until(lambda: bool(scene.client.cancels), "the request to cancel")
    assert (scene.client.cancels, scene.taken_slots) == ([[ticket.row.row_id]], 1)
    # Whoever waited cancels too, as it must, and that changes nothing.
    ticket.cancel()
    flight.report(0, FinishReason.CANCELLED)
    await until(scene.is_idle, "the slot's return")
    assert len(scene.client.cancels) == 1


async def test_a_deadline_whose_cancel_fails_settles_with_the_row(scene: Scene) -> None:
    scene.client.cancel_error = InferenceFailed("not now")
    ticket = scene.submit(after_s=2)
    flight = await scene.take_off()
    scene.clock.turn(3)
    assert isinstance((await outcome(ticket))[1], DeadlineExceeded)
    await until(lambda: bool(scene.client.cancels), "the request to cancel")
    assert scene.taken_slots == 1
    flight.report(0, FinishReason.LENGTH)
    await until(scene.is_idle, "the end of the row")


@pytest.mark.parametrize("error", MODEL_ERRORS, ids=lambda error: type(error).__name__)
async def test_a_failing_batch_fails_its_unfinished_rows_and_no_others(scene: Scene, error: ServiceError) -> None:
    tickets = [scene.submit() for _ in range(3)]
    flight = await scene.take_off()
    other = scene.submit()
    other_flight = await scene.take_off()
    flight.report(0, FinishReason.STOP, (1,))
    flight.report(1, tokens=(2,))
    flight.break_off(error)
    assert await outcome(tickets[0]) == ([1], FinishReason.STOP)
    assert await outcome(tickets[1]) == ([2], error)
    assert await outcome(tickets[2]) == ([], error)
    assert scene.place.doubts == 1
    assert scene.taken_slots == 1
    other_flight.report(0, FinishReason.STOP, (3,))
    assert await outcome(other) == ([3], FinishReason.STOP)


async def test_an_answer_that_breaks_off_without_a_word_fails_its_rows(scene: Scene) -> None:
    ticket = scene.submit()
    (await scene.take_off()).break_off()
    error = (await outcome(ticket))[1]
    assert isinstance(error, Unavailable)
    assert error.message == "the engine's answer broke off: try again"
    await until(scene.is_idle, "the end of the batch")


@pytest.mark.parametrize(
    ("reason", "kind", "message"),
    [
        (FinishReason.ERROR, InferenceFailed, "its log says why"),
        (FinishReason.CANCELLED, Unavailable, "it is shutting down"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
async def test_the_engine_ends_a_row_and_its_mates_go_on(
    scene: Scene, reason: FinishReason, kind: type[ServiceError], message: str
) -> None:
    tickets = [scene.submit() for _ in range(2)]
    flight = await scene.take_off()
    flight.report(0, reason)
    flight.report(1, FinishReason.STOP, (4,))
    error = (await outcome(tickets[0]))[1]
    assert isinstance(error, kind)
    assert message in error.message
    assert await outcome(tickets[1]) == ([4], FinishReason.STOP)


async def test_closing_fails_what_runs_and_what_waits_and_takes_nothing_more(scene: Scene) -> None:
    running = scene.submit(beams=SLOTS)
    await scene.take_off()
    waiting = scene.submit()
    await scene.lane.close()
    for ticket in (running, waiting):
        error = (await outcome(ticket))[1]
        assert isinstance(error, Unavailable)
        assert "shutting down" in error.message
    assert scene.is_idle()
    with pytest.raises(Unavailable, match="shutting down"):
        scene.submit()


async def test_closing_reaches_a_batch_that_has_not_begun(scene: Scene) -> None:
    ticket = scene.submit()
    scene.clock.turn()
    assert scene.lane.batcher.running == 1
    await scene.lane.close()
    assert isinstance((await outcome(ticket))[1], Unavailable)
    assert scene.client.flights.empty()
