"""Reading from a socket no more than there is room for.

asyncio hands an ordinary protocol whatever one read brings, 256 KB with uvloop. A thousand connections that send more
than they are asked for would make that a quarter of a gigabyte.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

READ_BYTES = 65_536
"""One read at most. Uploads take the same time with 64 KB as with 256 KB."""

_arrived = memoryview(bytearray(READ_BYTES))
"""Shared by all connections: loops that wait for readiness fill it and say so in one go."""


class Connection(Protocol):
    """A protocol of asyncio that says how much it takes."""

    def room(self, most: int) -> int:
        """Bytes that may be read now, at least one."""

    def data_received(self, data: bytes) -> None:
        """They came."""

    def eof_received(self) -> bool:
        """No more will come; whether the connection stays open nevertheless."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """It begins."""

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""

    def pause_writing(self) -> None:
        """What is written is not taken."""

    def resume_writing(self) -> None:
        """It is again."""


class Reader(asyncio.BufferedProtocol):
    """What the event loop sees of a connection."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.connection_made = connection.connection_made  # type: ignore[method-assign,assignment]
        self.connection_lost = connection.connection_lost  # type: ignore[method-assign]
        self.eof_received = connection.eof_received  # type: ignore[method-assign]
        self.pause_writing = connection.pause_writing  # type: ignore[method-assign]
        self.resume_writing = connection.resume_writing  # type: ignore[method-assign]

    def get_buffer(self, sizehint: int) -> memoryview:
        """Room for the next read."""
        return _arrived[: self._connection.room(READ_BYTES)]

    def buffer_updated(self, nbytes: int) -> None:
        """Hand on what came."""
        self._connection.data_received(bytes(_arrived[:nbytes]))
