"""Whether a client that sends no more is still there to be answered.

A client that shuts its sending side down and waits looks like one that has closed: the same FIN comes. Only what is
sent to them tells them apart, for who has closed answers it with a reset. So the answer is begun: its first bytes are
the same whatever becomes of it, and go out one by one until the rest is known.

    FIN ─▶ "H" ─▶ "T" ─▶ "T" ─▶ …           somebody waits: the answer's other bytes follow these
              ◀─ RST   ─▶ the next write fails, the connection is lost, its row is cancelled
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

BEGINNING = b"HTTP/1.1 "
"""Of every answer, of interim ones too."""

PAUSES_S = (0.002, 0.02, 0.2, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Between the bytes of it: a client that closes at once is missed after one round trip, one that closes later after
some. Neither costs more than a packet."""

assert len(PAUSES_S) == len(BEGINNING) - 1


class Begun:
    """The transport of an answer whose beginning may have gone out already: writes what is missing of it."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._sent = 0
        self.is_closing, self.close = transport.is_closing, transport.close

    def begin(self) -> None:
        """Send one byte more of the beginning."""
        self._transport.write(BEGINNING[self._sent : self._sent + 1])
        self._sent += 1

    def write(self, data: bytes) -> None:
        """Write an answer, or the next part of one."""
        assert not self._sent or data.startswith(BEGINNING), "an answer begins as all do"
        self._transport.write(data[self._sent :])
        self._sent = 0


class Probe:
    """Begins one answer, byte by byte, as long as nothing else of it goes out."""

    def __init__(self, loop: asyncio.AbstractEventLoop, cycle: RequestResponseCycle) -> None:
        self._loop, self.cycle = loop, cycle
        self._transport = Begun(cycle.transport)
        self._pauses = iter(PAUSES_S)
        cycle.transport = self._transport  # type: ignore[assignment]
        self._begin()

    def _begin(self) -> None:
        if self.cycle.response_started or self.cycle.disconnected or self._transport.is_closing():
            return
        self._transport.begin()
        pause_s = next(self._pauses, None)
        if pause_s is not None:
            self._timer = self._loop.call_later(pause_s, self._begin)

    def stop(self) -> None:
        """The answer is out, or nobody waits for it."""
        self._timer.cancel()
