"""How a chain is cut into consecutive parts of even cost: a network into the stages of a pipeline."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise


def split_evenly(costs: Sequence[float], parts: int) -> list[range]:
    """Parts whose dearest is as cheap as can be, and the others near an even share; none is empty.

    Args:
        costs: of the chain's links, at least as many as parts.
        parts: how many.
    """
    assert len(costs) >= parts
    # Binary search for the lowest limit that no part needs to exceed, then even shares below it.
    low, high = max(costs), sum(costs)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if len(_fill(costs, parts, middle)) <= parts else (middle, high)
    # What the search ended near, without its rounding: a limit that some parts just meet.
    limit = max(sum(costs[begin:end]) for begin, end in pairwise([0, *_fill(costs, parts, high)]))
    return [range(begin, end) for begin, end in pairwise([0, *_share(costs, parts, limit)])]


def _share(costs: Sequence[float], parts: int, limit: float) -> list[int]:
    """Ends of parts below a limit that can be kept, each as near as can be to an even share of what is left."""
    ends: list[int] = []
    begin = 0
    for left in range(parts, 0, -1):
        fair = sum(costs[begin:]) / left
        end, filled = begin + 1, costs[begin]
        while len(costs) - end >= left:
            nearer = filled + costs[end] / 2 <= fair and filled + costs[end] <= limit * (1 + 1e-12)
            if not nearer and len(_fill(costs[end:], left - 1, limit)) <= left - 1:
                break
            filled += costs[end]
            end += 1
        ends.append(end)
        begin = end
    return ends


def _fill(costs: Sequence[float], parts: int, limit: float) -> list[int]:
    """Ends of parts that are filled up to a limit, each leaving at least one link for every later part."""
    ends: list[int] = []
    sums = [0.0, *accumulate(costs)]
    begin = 0
    while begin < len(costs):
        furthest = bisect_right(sums, (sums[begin] + limit) * (1 + 1e-12)) - 1
        leaving = len(costs) - max(0, parts - len(ends) - 1)
        end = max(begin + 1, min(furthest, leaving))
        ends.append(end)
        begin = end
    return ends
