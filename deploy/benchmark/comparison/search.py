"""The highest load at which a server keeps its deadlines."""

from __future__ import annotations

from collections.abc import Callable, Mapping

KEPT = 0.95
"""Share of requests in time that counts as keeping them."""

FIRST, MOST = 0.5, 2.0


def probe(attained: Callable[[float], float], runs: int) -> dict[float, float]:
    """Shares of requests in time at the loads of a bisection: doubled until one fails, then halved between the two.

    Args:
        attained: tries a load.
        runs: how many loads are tried.
    """
    seen: dict[float, float] = {}
    low, high = 0.0, None
    load = FIRST
    for _ in range(runs):
        seen[load] = attained(load)
        if seen[load] >= KEPT:
            low = load
            if load >= MOST:
                break
        else:
            high = load
        load = min(MOST, 2 * low) if high is None else (low + high) / 2
    return seen


def highest_load(attained: Mapping[float, float]) -> float:
    """Where the share in time falls below `KEPT`, between the last load that keeps it and the first that does not.

    Between the two the share is taken to fall evenly; at load 0 it is 1.
    """
    kept, share = 0.0, 1.0
    for load in sorted(attained):
        if attained[load] < KEPT:
            return kept + (load - kept) * (share - KEPT) / (share - attained[load])
        kept, share = load, attained[load]
    return kept
