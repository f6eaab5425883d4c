"""Turns of pipelined requests: a few in each round of the event loop, however many connections have one waiting.

Else a thousand full pipelines put a thousand requests before each step of everybody else's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

A_ROUND = 8
"""Requests. A round with nothing else to do is over at once, so alone they lose nothing."""


class Turns:
    """Who waits for one, in the order of coming."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._due = False

    def wait(self, take: Callable[[], None]) -> None:
        """Have it called when it is its turn, in a later round of the running loop."""
        self._waiting.append(take)
        self._plan()

    def _plan(self) -> None:
        if self._waiting and not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._round)

    def _round(self) -> None:
        self._due = False
        for _ in range(min(A_ROUND, len(self._waiting))):
            take = self._waiting.popleft()
            take()
        self._plan()
