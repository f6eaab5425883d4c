"""Errors that are answered before any application sees the request, as bytes on the wire."""

from __future__ import annotations

import http

from httptools import HttpParserCallbackError

from service.api.errors import error_response
from service.errors import BodyTooLarge, InvalidInput, MalformedRequest, ServiceError


def on_the_wire(error: ServiceError, request_id: str) -> bytes:
    """The whole answer, which ends its connection."""
    response = error_response(error, request_id, {"X-Request-ID": request_id})
    status = f"HTTP/1.1 {response.status_code} {http.HTTPStatus(response.status_code).phrase}"
    lines = [status.encode(), *(name + b": " + value for name, value in response.raw_headers)]
    return b"\r\n".join([*lines, b"", bytes(response.body)])


def error_of(cause: BaseException | None, fallback: str) -> InvalidInput:
    """What the parser, or a callback of it, raised, as an error of ours."""
    if isinstance(cause, HttpParserCallbackError) and isinstance(cause.__context__, InvalidInput):
        return cause.__context__
    reason = str(cause or fallback)
    if "Content-Length overflow" in reason:
        return BodyTooLarge("Content-Length is more than any number of bytes that can be sent: send less")
    return MalformedRequest(f"this is no HTTP request that can be read ({reason}): look at its method, URL and headers")
