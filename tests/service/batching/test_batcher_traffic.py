"""Any traffic, under every policy: what is promised of queue, batches, deadlines and gauges holds at every moment."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.batching.batcher import Batcher
from service.batching.latency import BatchTime
from service.batching.load import PlaceLoad
from service.batching.pending import Pending, RunningBatch, State
from service.batching.policies import BatchLimits, Dynamic, Immediate, Policy, bucket
from service.batching.queue import RequestQueue
from service.errors import Overloaded
from tests.service.batching.hand_clock import HandClock
from tests.service.batching.scripted_client import ScriptedClient, SteadyPlace

LIMITS = BatchLimits(rows=4, tokens=600)
SLOTS = 6
QUEUE_TOKENS = 1500
MAX_DELAY_S = 0.5
SECONDS = st.one_of(st.sampled_from([0.0, 0.125, 0.25, 0.5]), st.floats(0, 1.5, allow_nan=False))
TOKENS = st.one_of(st.integers(1, 64), st.integers(1, 700))


@dataclass(eq=False)
class Traveller:
    """What a request's owner sees."""

    pending: Pending[Traveller] | None = None
    sent: int = 0
    expired_at_s: float | None = None
    settled: bool = False


class Traffic(RuleBasedStateMachine):
    """Requests come, leave, finish and time out in any order."""

    policy: Policy

    def __init__(self) -> None:
        super().__init__()
        self.clock = HandClock()
        self.batcher: Batcher[Traveller] = Batcher(
            queue=RequestQueue(QUEUE_TOKENS),
            policy=self.policy,
            limits=LIMITS,
            loads=[PlaceLoad(place=SteadyPlace(ScriptedClient()), capacity=lambda _: SLOTS, latency=BatchTime())],
            clock=self.clock,
            send=self._take,
        )
        self.waiting: list[Pending[Traveller]] = []
        """In the order of their arrival."""

        self.running: list[Pending[Traveller]] = []
        self.travellers: list[Traveller] = []

    @rule(
        tokens=TOKENS,
        group=st.sampled_from(["generation", "summary"]),
        slots=st.sampled_from([1, 1, 1, 1, 2, 4, 9]),
        patience_s=SECONDS,
        bounded=st.booleans(),
        count=st.sampled_from([1, 1, 1, 6]),
    )
    def submit(self, tokens: int, group: str, slots: int, patience_s: float, bounded: bool, count: int) -> None:
        for _ in range(count):
            self._submit(tokens, group, slots, patience_s, bounded)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 1000), again=st.booleans())
    def finish(self, which: int, again: bool) -> None:
        self._settle(self.running.pop(which % len(self.running)), again=again)

    @precondition(lambda self: self.waiting)
    @rule(which=st.integers(0, 1000), again=st.booleans())
    def give_up(self, which: int, again: bool) -> None:
        self._settle(self.waiting.pop(which % len(self.waiting)), again=again)

    @rule(seconds=SECONDS)
    def turn(self, seconds: float) -> None:
        self.clock.turn(seconds)
        self._nothing_is_overdue()

    @invariant()
    def the_gauges_agree(self) -> None:
        assert list(self.batcher.queue) == self.waiting
        assert self.batcher.queue.tokens == sum(each.tokens for each in self.waiting)
        assert self.batcher.running == len(self.running)
        assert {each.state for each in self.waiting} <= {State.WAITING}
        assert {each.state for each in self.running} <= {State.RUNNING}

    @invariant()
    def the_model_is_not_overloaded(self) -> None:
        slots = sum(each.slots for each in self.running)
        assert slots <= SLOTS or len(self.running) == 1

    @invariant()
    def deadlines_are_kept(self) -> None:
        for traveller in self.travellers:
            assert traveller.pending is not None
            overdue = traveller.pending.deadline_s < self.clock.now_s()
            assert not overdue or traveller.settled or traveller.expired_at_s is not None
            assert traveller.sent <= 1

    def teardown(self) -> None:
        """Whatever has come leaves: a model that finishes one request at a time empties the queue."""
        for _ in range(len(self.travellers) + 1):
            self.clock.turn(MAX_DELAY_S)
            self._nothing_is_overdue()
            if self.running:
                self._settle(self.running.pop(0), again=False)
        assert not self.waiting
        assert not self.running
        self.the_gauges_agree()
        self.clock.turn(10)
        assert not self.clock.arranged
        assert all(traveller.settled for traveller in self.travellers)

    def _submit(self, tokens: int, group: str, slots: int, patience_s: float, bounded: bool) -> None:
        traveller = Traveller()
        pending = Pending(
            payload=traveller,
            tokens=tokens,
            group=group,
            slots=slots,
            deadline_s=self.clock.now_s() + patience_s,
            on_deadline=lambda: self._expire(traveller),
            on_refused=lambda error: pytest.fail(f"the policy refused a request: {error}"),
        )
        traveller.pending = pending
        queued = sum(each.tokens for each in self.waiting)
        if bounded and self.waiting and queued + tokens > QUEUE_TOKENS:
            with pytest.raises(Overloaded, match=f"{queued} of {QUEUE_TOKENS} tokens") as refusal:
                self.batcher.submit(pending, bounded=bounded)
            assert 1 <= (refusal.value.retry_after_s or 0) <= 60
            return
        self.batcher.submit(pending, bounded=bounded)
        self.waiting.append(pending)
        self.travellers.append(traveller)

    def _take(self, running: RunningBatch[Traveller]) -> None:
        """`send`: every promise about a batch."""
        batch = running.requests
        now_s, head = self.clock.now_s(), batch[0]
        line = (head.group, bucket(head.tokens))
        mates = [each for each in self.waiting if (each.group, bucket(each.tokens)) == line]
        assert list(batch) == mates[: len(batch)], "the oldest of one group and bucket, in their order"
        longest = max(each.tokens for each in batch)
        assert len(batch) <= LIMITS.rows
        assert len(batch) == 1 or len(batch) * longest <= LIMITS.tokens
        assert longest <= 64 or 2 * sum(each.tokens for each in batch) > len(batch) * longest, "half is padding"
        assert all(self._ripe_s(each) > now_s for each in self.waiting[: self.waiting.index(head)]), "overtaken"
        for each in batch:
            assert each.sent_s == now_s
            each.payload.sent += 1
            self.waiting.remove(each)
            self.running.append(each)

    def _ripe_s(self, request: Pending[Traveller]) -> float:
        delay_s = self.policy.max_delay_s if isinstance(self.policy, Dynamic) else 0.0
        return request.arrived_s + delay_s

    def _nothing_is_overdue(self) -> None:
        """With everything done that is due, the oldest ripe request waits only for room in the model."""
        ripe = next((each for each in self.waiting if self._ripe_s(each) <= self.clock.now_s()), None)
        if ripe is not None:
            assert self.running
            assert sum(each.slots for each in self.running) + ripe.slots > SLOTS

    def _expire(self, traveller: Traveller) -> None:
        pending = traveller.pending
        assert pending is not None
        assert not traveller.settled, "settled before"
        assert traveller.expired_at_s is None, "expired twice"
        assert self.clock.now_s() == pending.deadline_s
        traveller.expired_at_s = self.clock.now_s()
        if pending in self.waiting:
            assert pending.state is State.SETTLED
            self.waiting.remove(pending)
            traveller.settled = True

    def _settle(self, pending: Pending[Traveller], *, again: bool) -> None:
        for _ in range(1 + again):
            self.batcher.settle(pending)
        pending.payload.settled = True


class ImmediateTraffic(Traffic):
    policy = Immediate()


class DynamicTraffic(Traffic):
    policy = Dynamic(MAX_DELAY_S)


TestImmediateTraffic = ImmediateTraffic.TestCase
TestImmediateTraffic.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestDynamicTraffic = DynamicTraffic.TestCase
TestDynamicTraffic.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
