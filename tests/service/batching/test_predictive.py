"""What the predictive policy promises, in simulated time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching.latency import BatchTime, LatencyModel
from service.batching.lines import length_class
from service.batching.pending import Pending
from service.batching.policies import BatchFirst, BatchLimits, Decision, Dynamic, Immediate, Policy, Predictive, View
from service.batching.simulation.costs import NAMED, Costs
from service.batching.simulation.foresight import Foresight
from service.batching.simulation.replay import NO_LIMIT, Outcome, Replay
from service.batching.simulation.requests import Requests, offsets_of, requests_at
from service.batching.tiers import Tier
from service.errors import ServiceError

CPU, GPU = NAMED["cpu"], NAMED["gpu"]
LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=40)


def traffic(load: float, *, costs: Costs = CPU, count: int = 600, arrivals: str = "poisson", seed: int = 1) -> Requests:
    generator = np.random.default_rng(seed)
    tokens = generator.lognormal(5.5, 1.0, count).astype(np.int64).clip(1, 512)
    return requests_at(load, tokens, offsets_of(arrivals, np.arange(count), generator), costs, 32)


def run(
    requests: Requests, policy: Policy | None = None, latency: LatencyModel | None = None, **how: object
) -> Outcome:
    costs = how.pop("costs", CPU)
    assert isinstance(costs, Costs)
    replay = Replay(requests=requests, costs=costs, policy=policy or Predictive(), latency=latency or costs)
    return replace(replay, **how).run()  # type: ignore[arg-type]


def patient(requests: Requests, seconds: float) -> Requests:
    """The same, with deadlines so far away."""
    return replace(requests, deadlines_s=requests.arrivals_s + seconds)


@pytest.mark.parametrize("costs", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("arrivals", ["poisson", "bursty"])
def test_no_other_policy_answers_more_in_time(costs: Costs, arrivals: str) -> None:
    for load in (0.2, 0.6, 1.0, 1.5, 2.0):
        requests = traffic(load, costs=costs, arrivals=arrivals)
        ours = run(requests, costs=costs).in_time.mean()
        for other in (Dynamic(0.002), Dynamic(0.02), BatchFirst(1.0), Immediate()):
            assert ours >= run(requests, other, costs=costs).in_time.mean() - 0.02, (load, other)


@pytest.mark.parametrize(("costs", "share"), [(CPU, 0.95), (GPU, 0.90)], ids=NAMED)
def test_it_answers_nearly_as_many_as_one_who_knows_the_future(costs: Costs, share: float) -> None:
    for load in (0.8, 1.5):
        requests = traffic(load, costs=costs, count=120)
        assert (
            run(requests, costs=costs).in_time.mean()
            >= share * run(requests, Foresight(requests), costs=costs).in_time.mean()
        )


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_wrong_predictions_cost_little_and_are_corrected_within_100_batches(factor: float) -> None:
    """The model begins with a machine that is three times as fast, or as slow."""
    requests = traffic(0.8)
    wrong = CPU.times(factor)
    learning = run(requests, latency=BatchTime(start=(wrong.a, wrong.b, wrong.c, wrong.d)))
    right = run(requests)
    assert learning.in_time.mean() >= right.in_time.mean() - 0.10
    later = slice(250, None)
    assert learning.in_time[later].mean() >= right.in_time[later].mean() - 0.02


@settings(max_examples=30)
@given(LENGTHS, st.floats(0.2, 3.0), st.integers(0, 5))
def test_every_request_ends_once_and_none_that_was_given_up_runs(lengths: list[int], load: float, seed: int) -> None:
    tokens = np.array(lengths)
    offsets = offsets_of("bursty", np.arange(len(tokens)), np.random.default_rng(seed))
    outcome = run(requests_at(load, tokens, offsets, CPU, 32))
    ends = outcome.in_time.astype(int) + outcome.late + outcome.rejected
    np.testing.assert_array_equal(ends, 1)
    assert not (outcome.rejected & ~np.isnan(outcome.waited_s)).any()


@settings(max_examples=30)
@given(LENGTHS, st.floats(0.2, 3.0))
def test_order_within_a_length_is_that_of_arrival(lengths: list[int], load: float) -> None:
    tokens = np.array(lengths)
    requests = patient(requests_at(load, tokens, np.arange(len(tokens)), CPU, 4), 60.0)
    outcome = run(requests, limits=BatchLimits(rows=4, tokens=NO_LIMIT))
    begun_s = requests.arrivals_s + outcome.waited_s
    for line in {length_class(each) for each in lengths}:
        same = [begun_s[index] for index, each in enumerate(lengths) if length_class(each) == line]
        assert (np.diff(same) >= -1e-9).all()


def test_long_requests_do_not_starve_behind_a_stream_of_short_ones() -> None:
    """Short ones alone are more than the machine can do, and pay better. Nobody's deadline is near."""
    tokens = np.full(12_000, 16)
    tokens[::2000] = 512
    slow = GPU.times(20)
    requests = patient(requests_at(2.0, tokens, np.arange(len(tokens)), slow, 32), 1e6)
    waited_s = run(requests, costs=slow).waited_s
    assert not np.isnan(waited_s).any()
    assert waited_s[tokens == 512].max() < 35
    starving = run(requests, Predictive(ages=False), costs=slow).waited_s
    assert starving[tokens == 512].max() > 45


def test_priority_keeps_its_deadlines_while_flex_takes_what_is_left() -> None:
    requests = traffic(1.2, count=1500)
    outcome = run(requests, tier_of=lambda index: Tier.FLEX if index % 2 else Tier.PRIORITY)
    urgent = np.arange(len(requests)) % 2 == 0
    alone = replace(
        requests,
        tokens=requests.tokens[urgent],
        arrivals_s=requests.arrivals_s[urgent],
        deadlines_s=requests.deadlines_s[urgent],
    )
    assert outcome.in_time[urgent].mean() >= run(alone).in_time.mean() - 0.06
    assert outcome.in_time[~urgent].mean() >= 0.3


def test_flex_is_served_in_bounded_time_beside_more_than_enough_of_the_others() -> None:
    count = 6000
    requests = patient(requests_at(1.2, np.full(count, 64), np.arange(count), GPU, 32), 1e6)
    flex = np.arange(count) % 100 == 50
    outcome = run(requests, costs=GPU, tier_of=lambda index: Tier.FLEX if flex[index] else Tier.DEFAULT)
    assert np.isfinite(outcome.waited_s).all()
    assert outcome.waited_s[flex].max() < Tier.FLEX.patience_s + 15


class Watched:
    """A policy whose refusals are looked into: could the request have been answered, had it gone next?"""

    def __init__(self, requests: Requests) -> None:
        self.policy, self.requests, self.refusals = Predictive(), requests, 0

    def admit(self, request: Pending[Any], view: View) -> ServiceError | None:
        error = self.policy.admit(request, view)
        if error is not None:
            self._check(request, view, ())
        return error

    def decide(self, view: View) -> Decision:
        decision = self.policy.decide(view)
        for request, _ in decision.refused:
            self._check(request, view, decision.batch)
        return decision

    def _check(self, request: Pending[Any], view: View, batch: Sequence[Pending[Any]]) -> None:
        """With what the machine has begun, or begins now, it would be late even alone."""
        self.refusals += 1
        free_s = max(
            (each.sent_s + CPU.predict_s(len(each.requests), each.longest) for each in view.running), default=0
        )
        free_s = max(free_s, view.now_s)
        if batch:
            free_s += CPU.predict_s(len(batch), max(each.tokens for each in batch))
        assert free_s + CPU.predict_s(1, request.tokens) > request.deadline_s


@given(LENGTHS, st.floats(0.5, 4.0), st.integers(0, 3))
@settings(max_examples=30)
def test_nobody_is_refused_who_could_have_been_answered(lengths: list[int], load: float, seed: int) -> None:
    tokens = np.array(lengths)
    offsets = offsets_of("bursty", np.arange(len(tokens)), np.random.default_rng(seed))
    requests = requests_at(load, tokens, offsets, CPU, 32)
    watched = Watched(requests)
    assert run(requests, watched).rejected.sum() == watched.refusals


def test_a_lone_request_that_may_be_in_time_runs_though_the_model_says_no() -> None:
    """A model that was wrong of late is not believed when it says that nothing can be done."""
    requests = traffic(0.1, count=60)
    wrong = CPU.times(6.0)
    outcome = run(requests, latency=BatchTime(start=(wrong.a, wrong.b, wrong.c, wrong.d)))
    assert outcome.in_time.mean() > 0.8


@pytest.mark.parametrize("left_out", ["refuses", "ages", "sheds", "groups", "hurries"])
def test_every_part_can_be_left_out(left_out: str) -> None:
    requests = traffic(1.2)
    outcome = run(requests, Predictive(**{left_out: False}))
    assert (outcome.in_time | outcome.late | outcome.rejected).all()
    if left_out == "refuses":
        assert not outcome.rejected.any()
    if left_out in ("sheds", "groups"):
        assert outcome.in_time.sum() < run(requests).in_time.sum()


def test_a_machine_that_is_not_steady_is_no_slower_but_harder_to_predict() -> None:
    requests = traffic(1.0)
    steady, unsteady = (run(requests, latency=BatchTime(), jitter=jitter).in_time.mean() for jitter in (0.0, 0.4))
    assert steady - 0.15 < unsteady < steady
    assert run(requests, latency=BatchTime(), jitter=0.4).in_time.mean() == unsteady, "equal seeds, equal runs"
