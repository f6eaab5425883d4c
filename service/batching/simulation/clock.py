"""Time that stands still while anything happens, and jumps to whatever happens next."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class SimulatedTimer:
    """An arranged call."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget it."""
        self.callback = None


class SimulatedClock:
    """Calls in the order of their times; of equal times, in the order in which they were arranged."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._timers: list[tuple[float, int, SimulatedTimer]] = []
        self._numbers = itertools.count()

    def now_s(self) -> float:
        """Seconds since the start."""
        return self._now_s

    def call_at(self, when_s: float, callback: Callable[[], None]) -> SimulatedTimer:
        """Call at that time; now, after what is arranged for now, where it is over."""
        timer = SimulatedTimer(callback)
        heapq.heappush(self._timers, (max(when_s, self._now_s), next(self._numbers), timer))
        return timer

    def run(self) -> None:
        """Until nothing is arranged any more."""
        while self._timers:
            when_s, _, timer = heapq.heappop(self._timers)
            if timer.callback is not None:
                self._now_s = when_s
                timer.callback()
