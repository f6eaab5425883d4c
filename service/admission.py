"""Requests in flight: how many there may be, and whether new ones may come."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import Draining, TooManyRequests


class Admission:
    """The door of the gateway."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.in_flight = 0
        self.draining = False
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold a place while a request is served. Raises Draining or TooManyRequests."""
        if self.draining:
            raise Draining("the service is shutting down and takes no new requests: send it to another one")
        if self.in_flight >= self._limit:
            raise TooManyRequests(
                f"{self.in_flight} requests are in flight, and {self._limit} is the limit: try again later",
                retry_after_s=1,
            )
        self.in_flight += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if not self.in_flight:
                self._empty.set()

    async def drain(self) -> None:
        """Admit nobody any more, and wait until all have left."""
        self.draining = True
        await self._empty.wait()
