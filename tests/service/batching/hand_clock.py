"""A clock that stands still until a test turns it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(order=True)
class HandTimer:
    """An arranged call."""

    when_s: float
    number: int
    callback: Callable[[], None] = field(compare=False)
    cancelled: bool = field(default=False, compare=False)

    def cancel(self) -> None:
        self.cancelled = True


class HandClock:
    """Calls are made while it is turned, in their order, each at its own time."""

    def __init__(self) -> None:
        self._now_s = 100.0
        self._timers: list[HandTimer] = []
        self._numbers = itertools.count()

    def now_s(self) -> float:
        return self._now_s

    def call_at(self, when_s: float, callback: Callable[[], None]) -> HandTimer:
        timer = HandTimer(when_s, next(self._numbers), callback)
        heapq.heappush(self._timers, timer)
        return timer

    def turn_to(self, when_s: float) -> None:
        """Let time go on to `when_s`."""
        while self._timers and self._timers[0].when_s <= when_s:
            timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                self._now_s = max(self._now_s, timer.when_s)
                timer.callback()
        self._now_s = max(self._now_s, when_s)

    def turn(self, seconds: float = 0.0) -> None:
        """Let so much time go by; without an argument only what is due now happens."""
        self.turn_to(self._now_s + seconds)

    @property
    def arranged(self) -> list[float]:
        """When calls are due."""
        return sorted(timer.when_s for timer in self._timers if not timer.cancelled)
