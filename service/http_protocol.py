"""uvicorn's HTTP, with what it lacks: time and size limits for heads, one envelope for errors of its parser, and bodies
behind an offer to upgrade.

    connection ─▶ head (head_timeout_s, head_bytes) ─▶ body and answer (the application's) ─▶ next head …
                   └─ offers an upgrade, as Java's client and curl --http2 do ─▶ read again without the offer

What is refused here is answered like any other error, though no application ever sees it.
"""

from __future__ import annotations

import asyncio
import http
import sys

import httptools
import structlog
from httptools import HttpParserCallbackError
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.errors import error_response
from service.api.exchange import request_id_of
from service.errors import BodyTooLarge, HeadersTooLarge, InvalidInput, MalformedRequest, RequestTimeout
from service.settings import LimitSettings

log = structlog.get_logger(__name__)

LINE_OVERHEAD = 4
"""Colon, space and line end of a header."""


class EnvelopeProtocol(HttpToolsProtocol):
    """One connection."""

    limits: LimitSettings

    _head_timer: asyncio.TimerHandle | None = None
    _head_begun = False
    _in_body = False
    _head_bytes = 0
    """Of URL and header lines that are complete."""

    _declines = False
    """The head that was read offers an upgrade, of which there is none here."""

    _kept_bytes = 0
    """That came since the parser last handed a piece of body, or the end of a message, on."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client may be silent for so long."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, as long as the parser need not keep more than a head may have."""
        if not self._in_body:
            self._await_head()
        self._kept_bytes += len(data)
        rest = memoryview(data)
        while rest and not self.transport.is_closing():
            rest = rest[self._parse(rest) :]
        if self._kept_bytes > self.limits.head_bytes and not self.transport.is_closing():
            self._refuse(self._too_large(self._kept_bytes))

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
        """A head begins, maybe behind another request in the same packet."""
        super().on_message_begin()
        self._head_begun, self._head_bytes = True, 0
        self._await_head()

    def on_url(self, url: bytes) -> None:
        """Count the URL."""
        super().on_url(url)
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        """Count a header, or a trailer."""
        super().on_header(name, value)
        self._count(len(name) + len(value) + LINE_OVERHEAD)

    def on_headers_complete(self) -> None:
        """The head is there; what follows is the application's to wait for."""
        self._declines = self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"
        if self._declines:
            return
        self._head_begun, self._in_body = False, True
        self._stop_waiting()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A piece of body, which the application counts."""
        self._kept_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        if self._declines:
            return
        self._in_body, self._kept_bytes = False, 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Whatever is left of a body that nobody wants must come in the time of a head."""
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._await_head()

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be parsed, and close; called while the parser's exception is handled."""
        self._refuse(_error_of(sys.exception(), msg))

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > self.limits.head_bytes:
            raise self._too_large(self._head_bytes)

    def _too_large(self, size: int) -> HeadersTooLarge:
        return HeadersTooLarge(
            f"URL and headers have at least {size} bytes, and {self.limits.head_bytes} is the limit: send less"
        )

    def _await_head(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.limits.head_timeout_s, self._head_is_late)

    def _stop_waiting(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._answering():
            # The head came too early rather than too late; the connection ends with the answer before it.
            self.cycle.keep_alive = False
        elif self._head_begun:
            self._refuse(
                RequestTimeout(
                    f"URL and headers did not arrive within {self.limits.head_timeout_s:g} s: send them faster"
                )
            )
        else:
            self.transport.close()

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, error: InvalidInput) -> None:
        """Answer what no application will see, and close."""
        if self._answering() and self.cycle.response_started:
            # Another answer is on its way over this connection: a second one in its midst would spoil it.
            self.transport.close()
            return
        request_id = request_id_of(self.headers or ())
        log.info("request", request_id=request_id, status=error.status, error=error.message)
        self.transport.write(_on_the_wire(error, request_id))
        self.transport.close()


def protocol_within(limits: LimitSettings) -> type[EnvelopeProtocol]:
    """The protocol with its limits: uvicorn makes one a connection, and hands it only its own settings."""
    return type("LimitedProtocol", (EnvelopeProtocol,), {"limits": limits})


def _error_of(cause: BaseException | None, fallback: str) -> InvalidInput:
    if isinstance(cause, HttpParserCallbackError) and isinstance(cause.__context__, InvalidInput):
        return cause.__context__
    reason = str(cause or fallback)
    if "Content-Length overflow" in reason:
        return BodyTooLarge("Content-Length is more than any number of bytes that can be sent: send less")
    return MalformedRequest(f"this is no HTTP request that can be read ({reason}): look at its method, URL and headers")


def _on_the_wire(error: InvalidInput, request_id: str) -> bytes:
    response = error_response(error, request_id, {"X-Request-ID": request_id})
    status = f"HTTP/1.1 {response.status_code} {http.HTTPStatus(response.status_code).phrase}"
    lines = [status.encode(), *(name + b": " + value for name, value in response.raw_headers)]
    return b"\r\n".join([*lines, b"", bytes(response.body)])
