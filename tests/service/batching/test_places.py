"""Several places behind one lane: who gets a batch, when the next one goes, and what happens when places go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest

from deploy.triton.protocol import FinishReason, Sampling, Source, Task
from service.batching.pending import Pending
from service.batching.policies import Decision, Immediate, Policy, View
from service.batching.rows import RowLane, RowTicket
from service.errors import DeadlineExceeded, InferenceFailed, Overloaded, ServiceError, Unavailable
from service.inference.fleet import Fleet
from service.inference.place import Place, Standing
from tests.service.batching.hand_clock import HandClock
from tests.service.batching.scripted_client import BUNDLE, SPECIAL, Flight, ScriptedClient, batcher_maker, until

SLOTS = 8


class Scene:
    """A lane with some places."""

    def __init__(self, count: int, *, ahead: int | None = None, policy: Policy | None = None) -> None:
        self.clients = [ScriptedClient() for _ in range(count)]
        self.clock = HandClock()
        self.places = [
            Place(f"place {number}", client, BUNDLE, SPECIAL, timeout_s=5.0)
            for number, client in enumerate(self.clients)
        ]
        self.fleet = Fleet(self.places)
        for place in self.places:
            place._stand(Standing.READY, None)
        self.lane = RowLane(self.fleet, batcher_maker(self.clock, self.fleet, slots=SLOTS, ahead=ahead, policy=policy))

    def submit(self, *, after_s: float = 1e6, beams: int = 1) -> RowTicket:
        return self.lane.submit(
            Task.GENERATION,
            Source(np.array([5, 60, 70])),
            Sampling(max_new_tokens=8, num_beams=beams),
            stream=False,
            deadline_s=self.clock.now_s() + after_s,
        )

    async def flight(self, number: int = 0) -> Flight:
        """The next batch at a place."""
        flights = self.clients[number].flights

        def arrived() -> bool:
            self.clock.turn()
            return not flights.empty()

        await until(arrived, f"a batch at place {number}")
        return flights.get_nowait()

    async def settled(self) -> None:
        """Let everything happen that is due."""
        self.clock.turn()
        for _ in range(5):
            await asyncio.sleep(0)


async def outcome(ticket: RowTicket) -> FinishReason | ServiceError:
    try:
        async with asyncio.timeout(60):
            reasons = [update.finish_reason async for update in ticket.updates()]
    except ServiceError as error:
        return error
    return reasons[-1]


@pytest.fixture
async def scenes() -> AsyncIterator[list[Scene]]:
    made: list[Scene] = []
    yield made
    for scene in made:
        await scene.lane.close()


async def test_a_batch_goes_to_the_emptiest_place_and_its_tickets_remember_it(scenes: list[Scene]) -> None:
    scenes.append(scene := Scene(2))
    first = scene.submit(beams=3)
    await scene.flight(0)
    second = scene.submit(beams=2)
    await scene.flight(1)
    third = scene.submit()
    await scene.flight(1)
    for ticket, number in ((first, 0), (second, 1), (third, 1)):
        assert ticket.pending.batch is not None
        assert ticket.pending.batch.place is scene.places[number]


async def test_a_cancel_goes_to_the_ticket_s_own_place(scenes: list[Scene]) -> None:
    scenes.append(scene := Scene(2))
    tickets = [scene.submit()]
    await scene.flight(0)
    tickets.append(scene.submit())
    await scene.flight(1)
    for ticket in tickets:
        ticket.cancel()
    await until(lambda: all(client.cancels for client in scene.clients), "both requests to cancel")
    assert [client.cancels for client in scene.clients] == [[[ticket.row.row_id]] for ticket in tickets]


async def test_a_place_that_is_down_gets_nothing_until_it_is_back(scenes: list[Scene]) -> None:
    scenes.append(scene := Scene(2))
    scene.places[0]._stand(Standing.DOWN, "gone")
    for _ in range(2):
        scene.submit(beams=SLOTS)
    await scene.flight(1)
    await scene.settled()
    assert (len(scene.lane.batcher.queue), scene.clients[0].flights.qsize()) == (1, 0)
    scene.places[0]._stand(Standing.READY, None)
    await scene.flight(0)


async def test_while_nobody_knows_who_answers_requests_wait(scenes: list[Scene]) -> None:
    scenes.append(scene := Scene(1))
    scene.places[0].doubt(Unavailable("the stream broke"))
    ticket = scene.submit()
    await scene.settled()
    assert len(scene.lane.batcher.queue) == 1
    scene.places[0]._stand(Standing.READY, None)
    (await scene.flight()).report(0, FinishReason.STOP)
    assert await outcome(ticket) is FinishReason.STOP


async def test_where_every_place_is_down_what_waits_fails_and_nothing_is_taken(scenes: list[Scene]) -> None:
    scenes.append(scene := Scene(2))
    for place in scene.places:
        place.doubt(Unavailable("the stream broke"))
    ticket = scene.submit()
    for place in scene.places:
        place._stand(Standing.DOWN, f"{place.name} serves another bundle")
    error = await outcome(ticket)
    assert isinstance(error, Unavailable)
    assert "place 0 serves another bundle; place 1 serves another bundle" in error.message
    assert not scene.lane.batcher.queue
    with pytest.raises(Unavailable, match="place 0 serves another bundle"):
        scene.submit()


async def test_the_next_batch_goes_when_the_one_before_has_begun(scenes: list[Scene]) -> None:
    scenes.append(scene := Scene(1, ahead=1))
    scene.submit()
    scene.submit()
    first = await scene.flight()
    late = [scene.submit() for _ in range(2)]
    await scene.settled()
    assert len(scene.lane.batcher.queue) == 2, "together they make a better batch than one by one"
    first.prefilled(1, tokens=3, seconds=0.1)
    await scene.settled()
    assert len(scene.lane.batcher.queue) == 2, "half of the first batch still waits"
    first.prefilled(1, tokens=3, seconds=0.1)
    second = await scene.flight()
    assert second.row_ids == [ticket.row.row_id for ticket in late]


@pytest.mark.parametrize("reason", [FinishReason.CANCELLED, FinishReason.ERROR], ids=lambda reason: reason.name)
async def test_rows_that_end_before_their_turn_hold_up_nobody(scenes: list[Scene], reason: FinishReason) -> None:
    scenes.append(scene := Scene(1, ahead=1))
    for _ in range(3):
        scene.submit()
    first = await scene.flight()
    late = scene.submit()
    first.prefilled(1, tokens=3, seconds=0.1)
    first.report(1, reason)
    first.report(2, reason)
    assert (await scene.flight()).row_ids == [late.row.row_id]


class Broken:
    """A policy that fails whatever it is asked."""

    def admit(self, request: Pending, view: View) -> ServiceError | None:
        raise ZeroDivisionError

    def decide(self, view: View) -> Decision:
        raise ZeroDivisionError


class Forgetful(Immediate):
    """A policy that names a request which has left already."""

    def __init__(self) -> None:
        self.named: tuple[Pending, ...] = ()

    def decide(self, view: View) -> Decision:
        self.named = self.named or tuple(view.queue)[:1]
        return Decision(batch=self.named)


@pytest.mark.parametrize("policy", [Broken(), Forgetful()], ids=lambda policy: type(policy).__name__)
async def test_a_policy_that_fails_leaves_nobody_waiting(scenes: list[Scene], policy: Policy) -> None:
    scenes.append(scene := Scene(1, policy=policy))
    for _ in range(2):
        ticket = scene.submit()
        (await scene.flight()).report(0, FinishReason.STOP)
        assert await outcome(ticket) is FinishReason.STOP


class Strict(Immediate):
    """A policy that knows who will come too late."""

    def __init__(self) -> None:
        self.seen: list[View] = []

    def admit(self, request: Pending, view: View) -> ServiceError | None:
        self.seen.append(view)
        if request.deadline_s - view.now_s < 1:
            return Overloaded("the answer would come after its deadline: try again later", retry_after_s=3)
        return None


async def test_a_policy_has_a_say_at_submission_and_sees_what_runs(scenes: list[Scene]) -> None:
    policy = Strict()
    scenes.append(scene := Scene(1, policy=policy))
    scene.submit(beams=3)
    flight = await scene.flight()
    scene.clock.turn(2)
    with pytest.raises(Overloaded, match="after its deadline") as refusal:
        scene.submit(after_s=0.5)
    assert refusal.value.retry_after_s == 3
    assert not scene.lane.batcher.queue
    view = policy.seen[-1]
    (running,) = view.running
    assert [pending.payload.row.row_id for pending in running.requests] == flight.row_ids
    assert (view.now_s - running.sent_s, running.place, running.waits) == (2, scene.places[0], True)
    assert (view.free_slots, view.idle) == (SLOTS - 3, False)
    assert view.forecast.all.counts[-1] == pytest.approx(2, abs=0.01), "refused ones came too"


async def test_a_batch_never_has_more_tokens_than_the_place_encodes_at_once(scenes: list[Scene]) -> None:
    scenes.append(scene := Scene(1))
    scene.lane.batcher.loads[0].tokens = lambda _: 7
    tickets = [scene.submit() for _ in range(5)]
    flights = [await scene.flight() for _ in range(3)]
    assert [len(flight.row_ids) for flight in flights] == [2, 2, 1]
    assert [row for flight in flights for row in flight.row_ids] == [ticket.row.row_id for ticket in tickets]


@pytest.mark.parametrize("error", [Unavailable("lost"), InferenceFailed("bad")], ids=lambda error: type(error).__name__)
async def test_a_failed_batch_puts_its_own_place_in_doubt(scenes: list[Scene], error: ServiceError) -> None:
    scenes.append(scene := Scene(2))
    ticket = scene.submit(after_s=1)
    (await scene.flight(0)).break_off(error)
    assert not isinstance(await outcome(ticket), DeadlineExceeded)
    wanted = Standing.UNPROVEN if isinstance(error, Unavailable) else Standing.SUSPECT
    assert [place.standing for place in scene.places] == [wanted, Standing.READY]
    assert scene.fleet.ready
