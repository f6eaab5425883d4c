"""uvicorn's HTTP, with what it lacks: limits of time and size for what clients send and read, one request at a time,
one envelope for errors of its parser, bodies behind an offer to upgrade, and answers to clients that send no more.

    connection ─▶ head (head_timeout_s, head_bytes) ─▶ body and answer (the application's) ─▶ next head …
                   └─ offers an upgrade, as Java's client and curl --http2 do ─▶ read again without the offer

What comes behind a request that is being answered waits unparsed, and in the socket where there is much of it.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import httptools
import structlog
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.addresses import Peer
from service.api.exchange import request_id_of
from service.connection.peers import Peers
from service.connection.probe import Probe
from service.connection.reader import Reader
from service.connection.refusal import error_of, on_the_wire
from service.connection.requests import HeadCount, Pieces
from service.connection.turns import Turns
from service.errors import HeadersTooLarge, RequestTimeout, ServiceError
from service.settings import LimitSettings

log = structlog.get_logger(__name__)

CountRejection = Callable[[str], None]
"""Told the reason of every refusal for want of room: nobody else hears of requests that are never read."""

LINGER_S = 1.0
"""How long a client that was refused may go on sending: the reset of an early close would take its answer away."""


class HeldFlow(FlowControl):
    """Does not read on while the connection has enough."""

    held = False

    def resume_reading(self) -> None:
        """As the application asks for it with every message, whether or not it is a body's."""
        if not self.held:
            super().resume_reading()


class Connection(HttpToolsProtocol):
    """One connection."""

    flow: HeldFlow

    _peer: Peer | None = None
    _counted = False
    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None
    _probe: Probe | None = None
    _head_begun = False
    _in_body = False
    _refused = False
    _sends_no_more = False
    _declines = False
    """The head that was read offers an upgrade, of which there is none here."""

    _kept_bytes = 0
    """That came since the parser last handed a piece of body, or the end of a message, on."""

    _unparsed = b""
    """What came behind a request that is being answered."""

    _waits_its_turn = False

    def __init__(
        self, limits: LimitSettings, peers: Peers, turns: Turns, count: CountRejection, **uvicorn_s: object
    ) -> None:
        super().__init__(**uvicorn_s)  # type: ignore[arg-type]
        self._limits, self._peers, self._turns, self._count = limits, peers, turns, count
        self._pieces, self._head = Pieces(), HeadCount(limits)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client may be silent for so long, if it may come at all."""
        super().connection_made(transport)
        self.flow = HeldFlow(transport)
        # Paused is then every answer that the kernel does not take.
        transport.set_write_buffer_limits(high=0)
        try:
            self._peer = self._peers.enter(self.client[0] if self.client else None)
        except ServiceError as error:
            self._refuse(error)
            return
        self._counted = True
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_waiting()
        self._stop_probing()
        self._unparsed = b""
        if self._write_timer is not None:
            self._write_timer.cancel()
        if self._counted:
            self._peers.leave(self._peer)
        super().connection_lost(exc)

    def room(self, most: int) -> int:
        """Bytes that may be read now."""
        if not self._has_request():
            return most
        return max(1, min(most, self._limits.pipeline_bytes - len(self._unparsed)))

    def data_received(self, data: bytes) -> None:
        """Parse up to the end of a request; what is behind it waits for the answer."""
        if self._refused:
            return
        if not self._has_request():
            self._parse_request(data)
            return
        self._unparsed += data
        self._hold_if_full()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Whoever sends no more may still wait for answers to what it has sent."""
        self._sends_no_more = self._has_request() and not self._refused
        if self._sends_no_more:
            self.flow.held = True
            self._begin_answer()
        return self._sends_no_more

    def pause_writing(self) -> None:
        """A client that does not read its answer is waited for, but not for ever."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(self._limits.write_pause_s, self._is_not_read)

    def resume_writing(self) -> None:
        """It has read."""
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().resume_writing()
        if (self._unparsed or self._sends_no_more) and not self._has_request():
            self._parse_next()

    def _has_request(self) -> bool:
        """Whether a whole request is here whose answer is not all out, or may be, and it is not its turn."""
        return not self._in_body and (self._answering() or self.flow.write_paused or self._waits_its_turn)

    def _hold_if_full(self) -> None:
        if len(self._unparsed) >= self._limits.pipeline_bytes:
            self.flow.pause_reading()
            self.flow.held = True
            self._begin_answer()

    def _begin_answer(self) -> None:
        """Nothing is read now: only what is written finds out whether the client is still there."""
        if self._probe is None and self._answering():
            self._probe = Probe(self.loop, self.cycle)

    def _stop_probing(self) -> None:
        if self._probe is not None:
            self._probe.stop()
            self._probe = None

    def _parse_next(self) -> None:
        """Parse what waited for the answer before it, when it is its turn."""
        if self._unparsed:
            self._waits_its_turn = True
            self._turns.wait(self._parse_on)
        else:
            self._parse_on()

    def _parse_on(self) -> None:
        self._waits_its_turn = False
        data, self._unparsed = self._unparsed, b""
        self._parse_request(data)
        if self._refused or self.transport.is_closing():
            return
        if self._sends_no_more:
            if self._has_request():
                self._begin_answer()
            else:
                self.transport.close()
        elif not self._unparsed:
            self.flow.held = False
            self.flow.resume_reading()
        else:
            self._hold_if_full()

    def _parse_request(self, data: bytes) -> None:
        """Parse, as long as the parser need not keep more than a head may have."""
        rest = memoryview(data)
        while rest and not (self._has_request() or self._refused or self.transport.is_closing()):
            if not self._in_body:
                self._await_head()
            piece = rest[: self._pieces.next_end(rest)]
            self._kept_bytes += len(piece)
            done = self._parse(piece)
            self._pieces.fed(piece[:done])
            rest = rest[done:]
            self._check_kept()
        self._unparsed = bytes(rest)

    def _check_kept(self) -> None:
        if self._refused or self.transport.is_closing():
            return
        try:
            self._head.kept(self._kept_bytes)
        except HeadersTooLarge as error:
            self._refuse(error)

    def _parse(self, data: bytes | memoryview) -> int:
        """Bytes that are done with: all, or those up to a head that offered an upgrade and is read once more."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            # The parser takes what follows for another protocol. RFC 9110, section 7.8: an offer may be ignored.
            if self._declines:
                self._read_head_again()
                return int(offer.args[0])
        except httptools.HttpParserError as error:
            self.send_400_response(str(error))
        return len(data)

    def _read_head_again(self) -> None:
        """Have a new parser read the head without its offer; the body comes next."""
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        self._declines = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self._parse(b"\r\n".join([*lines, b"", b""]))

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._head_begun, self._head, self._pieces.body_left = True, HeadCount(self._limits), None

    def on_url(self, url: bytes) -> None:
        """Count the URL."""
        super().on_url(url)
        self._head.url(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or a trailer."""
        super().on_header(name, value)
        self._head.header(name, value)

    def on_headers_complete(self) -> None:
        """The head is there; what follows is the application's to wait for."""
        self._declines = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._declines:
            return
        self._head_begun, self._in_body = False, True
        self._pieces.body_left = next((int(value) for name, value in self.headers if name == b"content-length"), None)
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of body, which the application counts."""
        self._kept_bytes = 0
        if self._pieces.body_left is not None:
            self._pieces.body_left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        if self._declines:
            return
        self._in_body, self._kept_bytes = False, 0
        self._stop_waiting()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The next request's turn. Whatever is left of a body that nobody wants must come in the time of a head."""
        self._stop_probing()
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self._in_body:
            self._await_head()
        elif not self._has_request():
            self._parse_next()

    def timeout_keep_alive_handler(self) -> None:
        """Nothing came for long, and what was answered may not have been read."""
        if self.flow.write_paused:
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be parsed, and close; called while the parser's exception is handled."""
        self._refuse(error_of(sys.exception(), msg))

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self._limits.head_timeout_s, self._head_is_late)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._head_begun:
            self._refuse(
                RequestTimeout(
                    f"URL and headers did not arrive within {self._limits.head_timeout_s:g} s: send them faster"
                )
            )
        else:
            self.transport.close()

    def _is_not_read(self) -> None:
        log.info("an answer is not read", peer=self.client, seconds=self._limits.write_pause_s)
        self.transport.abort()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: ServiceError) -> None:
        """Answer what no application will see, and close when the client has heard it."""
        self._refused = True
        self._stop_waiting()
        if self._answering():
            if self.cycle.response_started:
                # Another answer is on its way over this connection: a second one in its midst would spoil it.
                self.transport.close()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if error.rejection is not None:
            self._count(error.rejection)
        request_id = request_id_of(self.headers or ())
        log.info("request", request_id=request_id, status=error.status, error=error.message)
        self.transport.write(on_the_wire(error, request_id))
        self.transport.write_eof()
        self._head_timer = self.loop.call_later(LINGER_S, self.transport.abort)


def connections_within(limits: LimitSettings, count: CountRejection) -> Callable[..., Reader]:
    """What makes uvicorn's connections, with their limits; it hands them only its own settings."""
    peers, turns = Peers(limits), Turns()
    return lambda **uvicorn_s: Reader(Connection(limits, peers, turns, count, **uvicorn_s))
