"""Room for long texts: what is tokenised takes many times the memory of its bytes, so few of them are at work at once.

Short texts need no room: the number of requests in flight bounds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.batching.clock import Clock
from service.tasks.deadlines import until

SHORT_BYTES = 16_384
"""About 4,000 tokens of English."""


class TextRoom:
    """Texts go in by the order of their arrival, as many as fit."""

    def __init__(self, limit_bytes: int, clock: Clock) -> None:
        """No text may have more than `limit_bytes`."""
        self._limit, self._clock = limit_bytes, clock
        self.held_bytes = 0
        self._waiting: dict[asyncio.Future[None], int] = {}

    @asynccontextmanager
    async def hold(self, size: int, deadline_s: float) -> AsyncIterator[None]:
        """Keep room for `size` bytes, once there is some. Raises DeadlineExceeded where it takes too long."""
        if size <= SHORT_BYTES:
            yield
            return
        assert size <= self._limit, "settings leave room for one body"
        async with until(deadline_s, self._clock):
            await self._enter(size)
        try:
            yield
        finally:
            self._leave(size)

    async def _enter(self, size: int) -> None:
        if not self._waiting and self.held_bytes + size <= self._limit:
            self.held_bytes += size
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = size
        try:
            await turn
        except asyncio.CancelledError:
            if self._waiting.pop(turn, None) is None and not turn.cancelled():
                self.held_bytes -= size
            self._admit()
            raise

    def _leave(self, size: int) -> None:
        self.held_bytes -= size
        self._admit()

    def _admit(self) -> None:
        """Let in who is first, and who is behind, as far as there is room."""
        while self._waiting:
            turn, size = next(iter(self._waiting.items()))
            if self.held_bytes + size > self._limit:
                break
            del self._waiting[turn]
            if not turn.cancelled():
                self.held_bytes += size
                turn.set_result(None)
