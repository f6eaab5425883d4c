"""How many requests the best schedule of all answers in time: a search through every one, for a handful of requests."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations

from service.batching.simulation.costs import Costs
from service.batching.simulation.replay import ROUNDING_S
from service.batching.simulation.requests import Requests

MOST = 10
"""Requests; their subsets are gone through."""


def most_in_time(requests: Requests, costs: Costs, rows: int, free_s: float = 0.0) -> int:
    """The most requests that one model can answer in time, arrivals known, if it is free from `free_s` on.

    Only batches that are answered in time as a whole are tried, now or at the next arrival: leaving out who is late
    makes no batch longer, and nothing becomes possible between two arrivals. Raises ValueError for more than MOST.
    """
    if len(requests) > MOST:
        raise ValueError(f"every schedule of {len(requests)} requests takes too long: give {MOST} at most")
    arrivals_s, deadlines_s = requests.arrivals_s.tolist(), (requests.deadlines_s + ROUNDING_S).tolist()
    tokens = requests.tokens.tolist()

    def batches(here: list[int], now_s: float) -> Iterator[tuple[frozenset[int], float]]:
        for size in range(1, min(rows, len(here)) + 1):
            for batch in combinations(here, size):
                ends_s = now_s + costs.predict_s(size, max(tokens[index] for index in batch))
                if all(ends_s <= deadlines_s[index] for index in batch):
                    yield frozenset(batch), ends_s

    @cache
    def best(left: frozenset[int], now_s: float) -> int:
        here = [index for index in sorted(left) if arrivals_s[index] <= now_s]
        later_s = [arrivals_s[index] for index in left if arrivals_s[index] > now_s]
        most = best(left, min(later_s)) if later_s else 0
        for batch, ends_s in batches(here, now_s):
            most = max(most, len(batch) + best(left - batch, ends_s))
        return most

    return best(frozenset(range(len(requests))), free_s)
