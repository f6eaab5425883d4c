"""When batches go, who goes alone, and what a full or closed batcher says."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, is_dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.batcher import LONGEST_RETRY_S, Batcher
from service.batching.latency import BatchTime
from service.batching.load import PlaceLoad
from service.batching.pending import Pending, RunningBatch, State
from service.batching.policies import (
    BatchFirst,
    BatchLimits,
    Dynamic,
    Immediate,
    Policy,
    Predictive,
    bucket,
    make_policy,
)
from service.batching.queue import RequestQueue
from service.errors import Overloaded, ServiceError, Unavailable
from service.settings import BatchingSettings
from tests.service.batching.hand_clock import HandClock
from tests.service.batching.scripted_client import ScriptedClient, SteadyPlace

FOR_EVER_S = 1e9


class Desk:
    """A batcher and what came out of it."""

    def __init__(
        self,
        policy: Policy,
        *,
        rows: int = 4,
        tokens: int = 1000,
        slots: int = 8,
        queue_tokens: int = 10_000,
        seconds: float | None = None,
        places: Sequence[str] = ("only",),
    ) -> None:
        self.clock = HandClock()
        self.places = [SteadyPlace(ScriptedClient(), name) for name in places]
        self.sent_to: list[str] = []
        self.batches: list[list[str]] = []
        self.times_s: list[float] = []
        self.expired: list[str] = []
        self.refused: list[tuple[str, ServiceError]] = []
        self.batcher: Batcher[str] = Batcher(
            queue=RequestQueue(queue_tokens),
            policy=policy,
            limits=BatchLimits(rows=rows, tokens=tokens, seconds=seconds),
            loads=[PlaceLoad(place=place, capacity=lambda _: slots, latency=BatchTime()) for place in self.places],
            clock=self.clock,
            send=self._take,
        )

    def submit(
        self,
        name: str,
        *,
        tokens: int = 10,
        slots: int = 1,
        group: Hashable = "a",
        flow: Hashable | None = None,
        after_s: float = FOR_EVER_S,
        bounded: bool = True,
    ) -> Pending[str]:
        pending = Pending(
            payload=name,
            tokens=tokens,
            group=group,
            **({} if flow is None else {"flow": flow}),
            slots=slots,
            deadline_s=self.clock.now_s() + after_s,
            on_deadline=lambda: self.expired.append(name),
            on_refused=lambda error: self.refused.append((name, error)),
        )
        self.batcher.submit(pending, bounded=bounded)
        return pending

    def _take(self, batch: RunningBatch[str]) -> None:
        self.batches.append([pending.payload for pending in batch.requests])
        self.sent_to.append(batch.place.name)
        self.times_s.append(self.clock.now_s())


@pytest.fixture
def immediate() -> Desk:
    return Desk(Immediate())


@pytest.fixture
def dynamic() -> Desk:
    return Desk(Dynamic(0.5))


def test_immediate_sends_what_has_come_together_at_once(immediate: Desk) -> None:
    start_s = immediate.clock.now_s()
    immediate.submit("a")
    immediate.submit("b")
    immediate.clock.turn()
    assert (immediate.batches, immediate.times_s) == ([["a", "b"]], [start_s])


def test_dynamic_waits_for_company_exactly_its_delay(dynamic: Desk) -> None:
    start_s = dynamic.clock.now_s()
    dynamic.submit("a")
    dynamic.clock.turn(0.3)
    dynamic.submit("b")
    dynamic.clock.turn(5)
    assert (dynamic.batches, dynamic.times_s) == ([["a", "b"]], [start_s + 0.5])


def test_dynamic_keeps_every_lines_own_time(dynamic: Desk) -> None:
    start_s = dynamic.clock.now_s()
    dynamic.submit("a", group="a")
    dynamic.clock.turn(0.3)
    dynamic.submit("b", group="b")
    dynamic.clock.turn(5)
    assert dynamic.batches == [["a"], ["b"]]
    assert dynamic.times_s == pytest.approx([start_s + 0.5, start_s + 0.8])


def test_dynamic_forgets_a_time_whose_request_has_left(dynamic: Desk) -> None:
    start_s = dynamic.clock.now_s()
    leaving = dynamic.submit("a")
    dynamic.clock.turn(0.3)
    dynamic.submit("b")
    dynamic.clock.turn()
    dynamic.batcher.settle(leaving)
    dynamic.clock.turn(5)
    assert (dynamic.batches, dynamic.times_s) == ([["b"]], pytest.approx([start_s + 0.8]))


@pytest.mark.parametrize(
    ("count", "fields"),
    [(4, {}), (2, {"tokens": 500}), (2, {"tokens": 400}), (1, {"tokens": 5000}), (2, {"slots": 4}), (1, {"slots": 9})],
    ids=["rows", "tokens", "no room for another", "longer than a batch", "slots", "more slots than there are"],
)
def test_a_full_batch_does_not_wait(dynamic: Desk, count: int, fields: dict[str, int]) -> None:
    start_s = dynamic.clock.now_s()
    for number in range(count):
        dynamic.submit(str(number), **fields)
    dynamic.clock.turn()
    assert (dynamic.batches, dynamic.times_s) == ([[str(number) for number in range(count)]], [start_s])


def test_rows_tokens_and_slots_bound_a_batch() -> None:
    desk = Desk(Immediate(), rows=3, tokens=300, slots=100)
    for number in range(4):
        desk.submit(f"short {number}", group="short")
    for number, tokens in enumerate([70, 128, 90]):
        desk.submit(f"long {number}", group="long", tokens=tokens)
    desk.clock.turn()
    assert desk.batches == [
        ["short 0", "short 1", "short 2"],
        ["short 3"],
        ["long 0", "long 1"],
        ["long 2"],
    ]


@pytest.mark.parametrize("policy", [Immediate(), Dynamic(0.5)], ids=["immediate", "dynamic"])
def test_seconds_bound_a_batch_of_more_than_one(policy: Policy) -> None:
    # 1e-4 s a token, before anything was observed.
    desk = Desk(policy, rows=8, tokens=10_000, slots=100, seconds=0.1)
    for number in range(3):
        desk.submit(f"short {number}", tokens=400)
    for number in range(2):
        desk.submit(f"long {number}", tokens=3000)
    desk.clock.turn()
    assert desk.batches[:1] == [["short 0", "short 1"]]
    desk.clock.turn(1)
    assert sorted(desk.batches) == [["long 0"], ["long 1"], ["short 0", "short 1"], ["short 2"]]


@pytest.mark.parametrize("policy", [Immediate(), Dynamic(0.5)], ids=["immediate", "dynamic"])
@pytest.mark.parametrize("books", [1, 4])
def test_a_tiny_request_waits_for_what_runs_and_not_for_books(policy: Policy, books: int) -> None:
    desk = Desk(policy, rows=8, tokens=400, slots=1)
    running = [desk.submit("first", tokens=400, slots=1)]
    desk.clock.turn(1)
    running += [
        desk.submit(f"window {number} of {book}", tokens=400, flow=book) for number in range(6) for book in range(books)
    ]
    for _ in range(books):
        desk.clock.turn(1)
        desk.batcher.settle(next(each for each in running if each.state is State.RUNNING))
    desk.clock.turn(1)
    running.append(desk.submit("tiny", tokens=10))
    for _ in range(len(running)):
        desk.clock.turn(1)
        desk.batcher.settle(next((each for each in running if each.state is State.RUNNING), running[0]))
    sent = [batch[0] for batch in desk.batches]
    assert sent.index("tiny") == 1 + books, "right behind what ran"
    assert len(sent) == len(running)


def test_groups_and_lengths_that_would_pad_too_much_do_not_mix(immediate: Desk) -> None:
    for name, tokens, group in (("a", 60, 0), ("b", 65, 0), ("c", 64, 1), ("d", 128, 0), ("e", 1, 0)):
        immediate.submit(name, tokens=tokens, group=group)
    immediate.clock.turn()
    assert immediate.batches == [["a", "e"], ["b", "d"], ["c"]]


@given(st.integers(1, 100_000))
def test_a_bucket_is_at_most_half_padding(tokens: int) -> None:
    assert tokens <= bucket(tokens)
    assert bucket(tokens) == 64 or 2 * tokens > bucket(tokens)


@pytest.mark.parametrize("policy", [Immediate(), Dynamic(0.5)], ids=["immediate", "dynamic"])
def test_a_request_larger_than_the_model_runs_alone(policy: Policy) -> None:
    desk = Desk(policy, slots=8)
    first = desk.submit("small")
    desk.clock.turn(1)
    large = desk.submit("large", slots=20)
    late = desk.submit("late")
    desk.clock.turn(1)
    assert desk.batches == [["small"]], "late ones do not overtake it"
    desk.batcher.settle(first)
    desk.clock.turn(1)
    assert desk.batches == [["small"], ["large"]]
    desk.batcher.settle(large)
    desk.clock.turn(1)
    assert desk.batches[-1] == ["late"]
    desk.batcher.settle(late)
    assert desk.batcher.running == 0


def test_what_does_not_fit_holds_up_later_requests_and_not_earlier_ones(dynamic: Desk) -> None:
    dynamic.submit("running", slots=3, tokens=5000)
    dynamic.clock.turn(1)
    start_s = dynamic.clock.now_s()
    dynamic.submit("early", slots=2, group="b")
    dynamic.clock.turn(0.1)
    dynamic.submit("large", slots=8, group="c")
    dynamic.submit("late", slots=1, group="d")
    dynamic.clock.turn(5)
    assert dynamic.batches == [["running"], ["early"]]
    assert dynamic.times_s[1] == start_s + 0.5


def test_a_finished_request_makes_room_at_once(immediate: Desk) -> None:
    first = immediate.submit("a", slots=8)
    immediate.submit("b", slots=8)
    immediate.clock.turn(3)
    immediate.batcher.settle(first)
    immediate.clock.turn()
    assert immediate.times_s == [100.0, 103.0]


def test_a_full_queue_refuses_with_the_time_it_takes_to_drain() -> None:
    desk = Desk(Immediate(), rows=1, slots=1, queue_tokens=100)
    running = desk.submit("running")
    desk.clock.turn()
    waits = desk.submit("waits", tokens=10)
    desk.submit("waits too", tokens=50)
    with pytest.raises(Overloaded, match="60 of 100 tokens and has no room for 41 more: try again later") as refusal:
        desk.submit("refused", tokens=41)
    assert refusal.value.retry_after_s == 1
    # Ten tokens leave five seconds after the departure before: half a second a token.
    desk.clock.turn(5)
    desk.batcher.settle(running)
    desk.clock.turn()
    assert desk.batcher.retry_after_s() == 25
    # Fifty leave after as long again: a rate of a tenth of a second counts a tenth.
    desk.submit("the rest of one that was admitted", tokens=20, bounded=False)
    desk.clock.turn(5)
    desk.batcher.settle(waits)
    desk.clock.turn()
    assert desk.batcher.retry_after_s() == math.ceil(20 * 0.46)


def test_an_idle_queue_teaches_nothing_about_its_drain() -> None:
    desk = Desk(Immediate(), rows=1, slots=1, queue_tokens=100)
    early = desk.submit("early")
    desk.clock.turn()
    desk.batcher.settle(early)
    desk.clock.turn(500)
    desk.submit("late")
    desk.clock.turn()
    desk.submit("waits", tokens=90)
    assert desk.batches == [["early"], ["late"]]
    assert desk.batcher.retry_after_s() == 1


def test_the_time_to_retry_has_a_bound() -> None:
    desk = Desk(Immediate(), slots=1)
    running = desk.submit("running", slots=1)
    desk.clock.turn()
    desk.submit("waits", tokens=1)
    desk.submit("very long", tokens=9_000_000, bounded=False)
    desk.clock.turn(30)
    desk.batcher.settle(running)
    desk.clock.turn()
    assert desk.batcher.retry_after_s() == LONGEST_RETRY_S


def test_an_empty_queue_takes_a_request_of_any_size() -> None:
    desk = Desk(Immediate(), queue_tokens=100)
    desk.submit("large", tokens=5000)
    desk.clock.turn()
    assert desk.batches == [["large"]]


def test_a_waiting_request_leaves_at_its_deadline(dynamic: Desk) -> None:
    pending = dynamic.submit("a", after_s=0.25)
    dynamic.clock.turn(5)
    assert (dynamic.batches, dynamic.expired, pending.state) == ([], ["a"], State.SETTLED)
    assert (len(dynamic.batcher.queue), dynamic.batcher.queue.tokens) == (0, 0)


def test_a_running_request_keeps_its_place_beyond_its_deadline(immediate: Desk) -> None:
    pending = immediate.submit("a", slots=8, after_s=1)
    immediate.submit("b", slots=8)
    immediate.clock.turn(5)
    assert (immediate.batches, immediate.expired, immediate.batcher.running) == ([["a"]], ["a"], 1)
    immediate.batcher.settle(pending)
    immediate.clock.turn()
    assert immediate.batches == [["a"], ["b"]]


def test_a_deadline_that_is_over_already_is_never_sent(immediate: Desk) -> None:
    immediate.submit("a", after_s=-1)
    immediate.clock.turn()
    assert (immediate.batches, immediate.expired) == ([], ["a"])


def test_a_settled_request_has_no_deadline_any_more(immediate: Desk) -> None:
    pending = immediate.submit("a", after_s=1)
    immediate.clock.turn()
    for _ in range(2):
        immediate.batcher.settle(pending)
    immediate.clock.turn(5)
    assert (immediate.expired, immediate.batcher.running, immediate.clock.arranged) == ([], 0, [])


def test_closing_settles_everything_and_sends_nothing_more(immediate: Desk) -> None:
    immediate.submit("runs", slots=8, after_s=1)
    immediate.clock.turn()
    immediate.submit("waits", slots=8, after_s=1)
    assert immediate.batcher.close() == ["runs", "waits"]
    immediate.clock.turn(5)
    assert (immediate.batches, immediate.expired, immediate.clock.arranged) == ([["runs"]], [], [])
    assert (immediate.batcher.running, len(immediate.batcher.queue), immediate.batcher.queue.tokens) == (0, 0, 0)
    with pytest.raises(Unavailable, match="shutting down"):
        immediate.submit("late")


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("predictive", Predictive(ages=False)),
        ("dynamic", Dynamic(0.1)),
        ("batch_first", BatchFirst(3.0)),
        ("immediate", Immediate()),
    ],
)
def test_settings_name_a_policy(name: str, policy: Policy) -> None:
    knobs = {"max_delay_s": 0.1, "ageing_s": 3.0, "predictive": {"ages": False}}
    made = make_policy(BatchingSettings.model_validate({"policy": name, **knobs}))
    assert type(made) is type(policy)
    assert vars_of(made) == vars_of(policy)


def vars_of(policy: Policy) -> dict[str, object]:
    return asdict(policy) if is_dataclass(policy) else {}


def test_a_turn_that_needs_more_slots_than_are_free_is_not_overtaken() -> None:
    """Four beams that are past due, among single rows that come whenever one ends."""
    desk = Desk(Predictive(), slots=4)
    running = [desk.submit(f"row {number}") for number in range(4)]
    desk.clock.turn()
    desk.submit("beams", tokens=200, slots=4)
    desk.clock.turn(10)
    for number in range(4, 8):
        desk.submit(f"row {number}")
        desk.batcher.settle(running[number - 4])
        desk.clock.turn()
    assert "beams" in [name for batch in desk.batches for name in batch]
    assert not {"row 5", "row 6", "row 7"} & {name for batch in desk.batches for name in batch}
