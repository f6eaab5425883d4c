"""What a request does before it is in a queue ends at its deadline, too."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.batching.clock import Clock
from service.errors import DeadlineExceeded


@asynccontextmanager
async def until(deadline_s: float, clock: Clock) -> AsyncIterator[None]:
    """Cancel the block at the deadline; it is not begun behind it. Raises DeadlineExceeded."""
    left_s = deadline_s - clock.now_s()
    if left_s <= 0:
        raise _too_late()
    try:
        async with asyncio.timeout(left_s):
            yield
    except TimeoutError:
        raise _too_late() from None


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded(
        "the request's time was over before its text was read: send a longer X-Request-Timeout-Ms, or less text"
    )
