"""Bytes that are no HTTP request: answered in the one envelope too, though no application ever sees them."""

from __future__ import annotations

import http
import sys
from collections.abc import Mapping

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.errors import error_response
from service.api.exchange import request_id_of
from service.errors import BodyTooLarge, InvalidInput, MalformedRequest

log = structlog.get_logger(__name__)


class EnvelopeProtocol(HttpToolsProtocol):
    """uvicorn's HTTP, which answers what its parser refuses with a line of plain text."""

    def send_400_response(self, msg: str) -> None:
        """Answer what could not be parsed, and close; called while the parser's exception is handled."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            # Another answer is on its way over this connection: a second one in its midst would spoil it.
            self.transport.close()
            return
        error = _error_of(sys.exception(), msg)
        request_id = request_id_of(self.headers or ())
        log.info("request", request_id=request_id, status=error.status, error=error.message)
        self.transport.write(_on_the_wire(error, request_id, {"Connection": "close"}))
        self.transport.close()


def _error_of(cause: BaseException | None, fallback: str) -> InvalidInput:
    reason = str(cause or fallback)
    if "Content-Length overflow" in reason:
        return BodyTooLarge("Content-Length is more than any number of bytes that can be sent: send less")
    return MalformedRequest(f"this is no HTTP request that can be read ({reason}): look at its method, URL and headers")


def _on_the_wire(error: InvalidInput, request_id: str, headers: Mapping[str, str]) -> bytes:
    response = error_response(error, request_id, {**headers, "X-Request-ID": request_id})
    status = f"HTTP/1.1 {response.status_code} {http.HTTPStatus(response.status_code).phrase}"
    lines = [status.encode(), *(name + b": " + value for name, value in response.raw_headers)]
    return b"\r\n".join([*lines, b"", bytes(response.body)])
