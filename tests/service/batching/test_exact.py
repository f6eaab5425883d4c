"""The search through every schedule, and what policies reach beside it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching.policies import BatchLimits, Dynamic, Policy, Predictive
from service.batching.simulation.costs import NAMED, Costs
from service.batching.simulation.exact import MOST, most_in_time
from service.batching.simulation.foresight import Foresight
from service.batching.simulation.replay import NO_LIMIT, Replay
from service.batching.simulation.requests import Requests, offsets_of, requests_at

ROWS = 4
SMALL = st.lists(st.integers(1, 512), min_size=1, max_size=6)


def few(tokens: list[int], load: float, costs: Costs, seed: int) -> Requests:
    offsets = offsets_of("bursty", np.arange(len(tokens)), np.random.default_rng(seed))
    return requests_at(load, np.array(tokens), offsets, costs, ROWS)


def in_time(requests: Requests, policy: Policy, costs: Costs) -> int:
    limits = BatchLimits(rows=ROWS, tokens=NO_LIMIT)
    return int(Replay(requests=requests, costs=costs, policy=policy, latency=costs, limits=limits).run().in_time.sum())


def at(arrivals_s: list[float], deadlines_s: list[float]) -> Requests:
    """Requests of one token each."""
    count = len(arrivals_s)
    return Requests(
        tokens=np.ones(count, int),
        arrivals_s=np.array(arrivals_s),
        deadlines_s=np.array(deadlines_s),
        work_s=np.ones(count),
        capacity_per_s=1.0,
    )


ONE_SECOND = Costs(1.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("requests", "free_s", "most"),
    [
        (at([0, 0, 0], [1, 1, 1]), 0.0, 3),
        (at([0, 0, 0], [1, 1, 1]), 0.5, 0),
        # Whoever begins with the first misses the two that come meanwhile.
        (at([0, 0.5, 0.5], [1, 1.5, 1.5]), 0.0, 2),
        # Waiting brings all of them together.
        (at([0, 0.5, 0.5], [1.5, 1.5, 1.5]), 0.0, 3),
        # Four rows at most, and no time for two batches.
        (at([0] * 5, [1.9] * 5), 0.0, 4),
        (at([0] * 5, [2] * 5), 0.0, 5),
    ],
)
def test_it_finds_the_best_schedule_of_cases_that_can_be_seen(requests: Requests, free_s: float, most: int) -> None:
    assert most_in_time(requests, ONE_SECOND, ROWS, free_s) == most


def test_it_refuses_more_than_it_can_search() -> None:
    with pytest.raises(ValueError, match=f"give {MOST} at most"):
        most_in_time(at([0.0] * 11, [1.0] * 11), ONE_SECOND, ROWS)


@settings(max_examples=40)
@given(SMALL, st.floats(0.3, 4.0), st.integers(0, 9), st.sampled_from(list(NAMED.values())))
def test_no_policy_answers_more_than_the_best_schedule(tokens: list[int], load: float, seed: int, costs: Costs) -> None:
    requests = few(tokens, load, costs, seed)
    most = most_in_time(requests, costs, ROWS)
    for policy in (Predictive(), Dynamic(0.002), Foresight(requests)):
        assert in_time(requests, policy, costs) <= most


@settings(max_examples=60)
@given(SMALL, st.sampled_from(list(NAMED.values())))
def test_nobody_is_refused_or_late_where_all_could_go_one_by_one(tokens: list[int], costs: Costs) -> None:
    """All come at once, and are patient enough for each to go alone, were all as long as the longest."""
    patience_s = len(tokens) * costs.predict_s(1, max(tokens)) + 1e-6
    requests = Requests(
        tokens=np.array(tokens),
        arrivals_s=np.zeros(len(tokens)),
        deadlines_s=np.full(len(tokens), patience_s),
        work_s=np.ones(len(tokens)),
        capacity_per_s=1.0,
    )
    assert in_time(requests, Predictive(), costs) == len(tokens)


@pytest.mark.parametrize("costs", NAMED.values(), ids=NAMED)
def test_it_answers_nearly_as_many_as_the_best_schedule_of_all(costs: Costs) -> None:
    generator = np.random.default_rng(3)
    ours = best = 0
    for seed in range(40):
        tokens = generator.lognormal(5.5, 1.0, 5).astype(int).clip(1, 512).tolist()
        requests = few(tokens, 1.5, costs, seed)
        ours += in_time(requests, Predictive(), costs)
        best += most_in_time(requests, costs, ROWS)
    assert ours >= 0.9 * best
