"""Routes whose bodies are JSON: bounded, parsed strictly, and served only while the client is there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import orjson
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive

from service.admission import Visit
from service.api.exchange import exchange_of
from service.errors import BodyTooLarge, ClientGone, InvalidInput, InvalidJson, RequestTimeout, UnsupportedMediaType
from service.settings import LimitSettings

MOST_FIELDS = 100
"""Each unknown field is an error of its own: a million of them would keep the process busy for seconds."""

LONGEST_REST = 24
"""Characters of a body that are repeated from where it stops being JSON."""

JSON_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "an array",
}
"""What JSON calls the types that it is parsed into, objects aside."""


class JsonRequest(Request):
    """A request whose body has been read already."""

    async def json(self) -> Any:
        """The object in the body. Raises InvalidJson where there is none, InvalidInput where it is none."""
        try:
            # Unlike the standard library it takes UTF-8 only, no NaN, no lone surrogate, no bottomless nesting.
            value = orjson.loads(body := await self.body())
        except orjson.JSONDecodeError as error:
            raise InvalidJson(_where_it_breaks(body, error)) from None
        if not isinstance(value, dict):
            raise InvalidInput(f"the body is {JSON_NAMES[type(value)]}: send an object")
        if len(value) > MOST_FIELDS:
            raise InvalidInput(f"the body has {len(value)} fields, and {MOST_FIELDS} is the limit")
        return value


def _where_it_breaks(body: bytes, error: orjson.JSONDecodeError) -> str:
    """What keeps a body from being JSON, and what stands at that place."""
    try:
        text = body.decode()
    except UnicodeDecodeError as broken:
        return f"the body is not UTF-8: byte {broken.start} is {body[broken.start]:#04x}: send JSON in UTF-8"
    rest = text[error.pos : error.pos + LONGEST_REST]
    stands = f"where it says {rest!r}" if rest else "where it ends"
    return (
        f"the body is not JSON: {error.msg}, at line {error.lineno}, column {error.colno}, {stands}: correct it there"
    )


class JsonRoute(APIRoute):
    """A route that reads JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler around FastAPI's own."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            limits: LimitSettings = request.app.state.gateway.settings.limits
            visit = exchange_of(request.scope).visit
            assert visit is not None, "paths with bodies are admitted"
            check_media_type(request)
            parsed = JsonRequest(request.scope, request.receive)
            parsed._body = await read_body(request, limits, visit)
            visit.enter()
            return await while_connected(request.receive, handle(parsed))

        return bounded


def check_media_type(request: Request) -> None:
    """Raises UnsupportedMediaType for a body that is not declared as JSON, or is compressed."""
    given = request.headers.get("content-type", "")
    media_type = given.partition(";")[0].strip().lower()
    if not (media_type == "application/json" or (media_type.startswith("application/") and media_type[-5:] == "+json")):
        raise UnsupportedMediaType(f"Content-Type is {given[:100]!r}: send application/json", param="Content-Type")
    encoding = request.headers.get("content-encoding", "")
    if encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMediaType(
            f"Content-Encoding is {encoding[:100]!r}: send the body uncompressed", param="Content-Encoding"
        )


async def read_body(request: Request, limits: LimitSettings, visit: Visit) -> bytes:
    """The body, counted as it comes; nothing behind the limit is read.

    Raises BodyTooLarge, TooManyBytes, RequestTimeout for one that does not come, or ClientGone where the client leaves
    midway.
    """
    most = limits.body_bytes
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise BodyTooLarge(f"the body has {declared} bytes, and {most} is the limit: send less")
    now_s = asyncio.get_running_loop().time
    end_s = now_s() + limits.body_timeout_s
    body = bytearray()
    try:
        async with asyncio.timeout_at(min(end_s, now_s() + limits.body_pause_s)) as patience:
            async for chunk in request.stream():
                visit.receive(len(chunk))
                body += chunk
                if len(body) > most:
                    raise BodyTooLarge(f"the body has more than {most} bytes, which is the limit: send less")
                patience.reschedule(min(end_s, now_s() + limits.body_pause_s))
    except ClientDisconnect:
        raise ClientGone from None
    except TimeoutError:
        raise RequestTimeout(
            f"{len(body)} bytes of the body arrived, and no more within {limits.body_pause_s:g} s, or not all within "
            f"{limits.body_timeout_s:g} s: send it faster"
        ) from None
    return bytes(body)


async def while_connected(receive: Receive, work: Awaitable[Response]) -> Response:
    """The result of some work, which is cancelled when the client leaves. Raises ClientGone, or what it raises."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_departure(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGone
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _departure(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
