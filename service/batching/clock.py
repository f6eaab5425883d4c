"""Time as the batchers see it, so that tests can turn it by hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that has been arranged."""

    def cancel(self) -> None:
        """Forget it; does nothing where it has happened."""


class Clock(Protocol):
    """A monotonic clock that calls back."""

    def now_s(self) -> float:
        """Seconds since an arbitrary start."""

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Timer:
        """Call at a time of this clock; as soon as possible where it is over."""


class LoopClock:
    """Calls back on the running event loop. Its own time, not the loop's: uvloop's has whole milliseconds only."""

    def now_s(self) -> float:
        """Seconds since an arbitrary start."""
        return time.monotonic()

    def call_at(self, when_s: float, callback: Callable[[], None]) -> Timer:
        """Call at a time of this clock; as soon as possible where it is over."""
        return asyncio.get_running_loop().call_later(max(0.0, when_s - self.now_s()), callback)
