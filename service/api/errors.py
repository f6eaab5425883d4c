"""The one envelope of all errors, and how every kind of exception gets into it."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.api.exchange import OPENAI_PATHS, exchange_of
from service.api.openai_fields import REFUSALS
from service.api.responses import JsonResponse
from service.errors import (
    InvalidInput,
    MethodNotAllowed,
    MissingField,
    NotFound,
    ServiceError,
    UnknownField,
)
from service.wrong_values import wanted

OPENAI_INVALID = 400
"""OpenAI's status for fields that are at fault; its clients raise BadRequestError."""

LONGEST_NAME = 100
"""Characters of a client's own words that are repeated to it."""


class _ShortRepr(reprlib.Repr):
    """A client's value, cut short; null, true and false by JSON's names."""

    def repr_NoneType(self, _: None, __: int) -> str:  # noqa: N802
        return "null"

    def repr_bool(self, value: bool, _: int) -> str:
        return "true" if value else "false"


_short = _ShortRepr()
_short.maxstring = _short.maxother = 80
_short.maxlevel = 2


class ErrorDetail(BaseModel):
    """What went wrong."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    type: str
    """`invalid_request_error`: change the request; `overloaded_error`: try again later; `server_error`."""

    code: str
    """A word for programs."""

    message: str
    """A sentence for people: the value, the limit and the fix."""

    param: str | None
    """The field or header at fault."""

    request_id: str
    """The X-Request-ID of the exchange, to be found in the logs."""


class ErrorResponse(BaseModel):
    """Every error, of every endpoint."""

    error: ErrorDetail


def envelope(error: ServiceError, request_id: str) -> dict[str, Any]:
    """An error as it is sent."""
    return {
        "error": {
            "type": error.type,
            "code": error.code,
            "message": error.message,
            "param": error.param,
            "request_id": request_id,
        }
    }


def error_response(error: ServiceError, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as a response."""
    merged = dict(headers or {})
    if error.retry_after_s is not None:
        merged["Retry-After"] = str(error.retry_after_s)
    if error.should_retry is not None:
        # OpenAI's clients would otherwise retry every status from 500 up.
        merged["X-Should-Retry"] = str(error.should_retry).lower()
    if error.ends_connection:
        merged["Connection"] = "close"
    return JsonResponse(envelope(error, request_id), status_code=error.status_code, headers=merged)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Our own errors, and those of the router: no such path, no such method."""
    assert isinstance(error, HTTPException)
    return _respond(request, error if isinstance(error, ServiceError) else _of_router(request, error), error.headers)


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Fields that the schemas refuse."""
    assert isinstance(error, RequestValidationError)
    # A typo first: it is why the field that was meant is missing.
    worst = min(error.errors(), key=lambda detail: detail["type"] not in ("extra_forbidden", *REFUSALS))
    return _respond(request, _of_field(worst))


def _respond(request: Request, error: ServiceError, headers: Mapping[str, str] | None = None) -> Response:
    exchange = exchange_of(request.scope)
    if error.status_code == InvalidInput.status and request.url.path in OPENAI_PATHS:
        error.status_code = OPENAI_INVALID
    exchange.failure = error
    return error_response(error, exchange.request_id, headers)


def _of_router(request: Request, error: HTTPException) -> ServiceError:
    method, path = request.method, _short.repr(request.url.path)
    if error.status_code == MethodNotAllowed.status:
        allowed = (error.headers or {}).get("Allow", "another method")
        return MethodNotAllowed(f"{path} does not take {method}: use {allowed}")
    if error.status_code == NotFound.status:
        return NotFound(f"there is nothing at {path}: see /docs for what there is")
    failure = ServiceError(str(error.detail))
    failure.status_code = error.status_code
    return failure


def _of_field(detail: Mapping[str, Any]) -> InvalidInput:
    """One of pydantic's errors. The first of the location is the place: body, header …"""
    place, *path = detail["loc"]
    # Locations inside a union also name its branch; what clients know ends at the first index.
    param = ".".join(str(part) for part in path)[:LONGEST_NAME] if path else None
    kind = detail["type"]
    if kind in REFUSALS:
        name = ".".join(str(part) for part in (*path, detail["ctx"]["field"]))[:LONGEST_NAME]
        return REFUSALS[kind](f"{name or repr(name)} {detail['msg']}", param=name)
    if kind == "missing":
        return MissingField(f"{param or f'the {place}'} is missing: send it", param=param)
    if kind == "extra_forbidden":
        return UnknownField(
            f"{param or repr(param)} is no field of this request: look at /docs for its spelling", param=param
        )
    should = wanted(kind, detail["msg"], detail.get("ctx") or {})
    return InvalidInput(f"{param or place} is {_short.repr(detail['input'])}: {should}", param=param)
