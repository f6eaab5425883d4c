"""What is sent in a simulation: lengths, arrivals, deadlines, and the load that they amount to.

Load 1.0 is what the model alone could do: all requests in batches of the largest size, sorted by length, one after the
other without a pause. A request's deadline is five times what it takes alone, and 50 ms at least.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.batching.simulation.costs import Costs

PATIENCE = 5.0
SHORTEST_DEADLINE_S = 0.05
BURST = 8.0
"""Rate within a burst over the rate outside."""

BURST_SHARE = 0.1
"""Of the time."""

ARRIVALS = ("trace", "poisson", "bursty")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Requests:
    """In the order of their arrival."""

    tokens: np.ndarray
    """INT [R]."""

    arrivals_s: np.ndarray
    """FP64 [R], from 0 on."""

    deadlines_s: np.ndarray
    work_s: np.ndarray
    """A request's share of the batch that it is in at load 1.0."""

    capacity_per_s: float
    """Requests a second at load 1.0."""

    def __len__(self) -> int:
        return len(self.tokens)


def sorted_work_s(tokens: np.ndarray, costs: Costs, rows: int) -> np.ndarray:
    """Seconds of each request where all go in batches sorted by length: its share of its batch. FP64 [R]."""
    order = np.argsort(tokens, kind="stable")
    work_s = np.empty(len(tokens))
    for first in range(0, len(order), rows):
        batch = order[first : first + rows]
        work_s[batch] = costs.predict_s(len(batch), int(tokens[batch[-1]])) / len(batch)
    return work_s


def requests_at(load: float, tokens: np.ndarray, offsets: np.ndarray, costs: Costs, rows: int) -> Requests:
    """Requests of those lengths, arriving at those offsets stretched or compressed to the load."""
    work_s = sorted_work_s(tokens, costs, rows)
    return timed(load, tokens, offsets, work_s, costs.table_s(np.ones(1), tokens.astype(np.float64)))


def patience_s(alone_s: np.ndarray) -> np.ndarray:
    """From arrival to deadline, by what requests take alone: FP64 [R]."""
    return np.maximum(PATIENCE * alone_s, SHORTEST_DEADLINE_S)


def timed(load: float, tokens: np.ndarray, offsets: np.ndarray, work_s: np.ndarray, alone_s: np.ndarray) -> Requests:
    """Requests at a load, by what they take at load 1.0 and what each takes alone: FP64 [R] both."""
    seconds = float(work_s.sum())
    arrivals_s = (offsets - offsets[0]) / max(offsets[-1] - offsets[0], 1e-9) * seconds / load
    return Requests(
        tokens=tokens,
        arrivals_s=arrivals_s,
        deadlines_s=arrivals_s + patience_s(alone_s),
        work_s=work_s,
        capacity_per_s=len(tokens) / seconds,
    )


def offsets_of(arrivals: str, recorded: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Offsets of as many arrivals as were recorded: those themselves, or of a process. Raises ValueError."""
    if arrivals == "trace":
        return recorded
    if arrivals == "poisson":
        return np.cumsum(generator.exponential(1.0, len(recorded)))
    if arrivals == "bursty":
        return _bursty(len(recorded), generator)
    raise ValueError(f"there are no arrivals {arrivals!r}: choose one of {', '.join(ARRIVALS)}")


def _bursty(count: int, generator: np.random.Generator) -> np.ndarray:
    """A Poisson process whose rate is BURST times as high in bursts of 20 to 100 requests."""
    gaps: list[np.ndarray] = []
    left, in_burst = count, False
    while left > 0:
        inside = int(generator.integers(20, 101))
        # As many requests outside as make bursts the stated share of the time.
        size = inside if in_burst else max(1, round(inside * (1 - BURST_SHARE) / (BURST_SHARE * BURST)))
        size = min(size, left)
        gaps.append(generator.exponential(1 / BURST if in_burst else 1.0, size))
        left -= size
        in_burst = not in_burst
    return np.cumsum(np.concatenate(gaps))
