"""Server-sent events of an answer that is still being written."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import Any

import orjson
import structlog
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send

from service.api.errors import envelope
from service.api.exchange import Exchange
from service.errors import InferenceFailed, ServiceError
from service.tasks.answers import Piece

log = structlog.get_logger(__name__)

SEPARATOR = "\n"
DONE = ServerSentEvent("[DONE]", sep=SEPARATOR)

Frame = Callable[[Piece], Iterable[dict[str, Any]]]
"""The events that a piece becomes."""


class EventStream(EventSourceResponse):
    """A response of events; its source is closed whatever happens to the connection."""

    def __init__(self, events: AsyncGenerator[ServerSentEvent, None], source: AsyncGenerator[Piece, None]) -> None:
        super().__init__(events, sep=SEPARATOR)
        self._events, self._source = events, source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until they end or the client leaves."""
        async with aclosing(self._source), aclosing(self._events):
            await super().__call__(scope, receive, send)


async def open_stream(pieces: AsyncGenerator[Piece, None], frame: Frame, exchange: Exchange) -> EventStream:
    """A stream whose first piece is there, so that what goes wrong before it is an HTTP error.

    Raises whatever the pieces raise before the first.
    """
    try:
        first = await anext(pieces)
    except BaseException:
        await pieces.aclose()
        raise
    return EventStream(_events(first, pieces, frame, exchange), pieces)


async def _events(
    first: Piece, rest: AsyncIterator[Piece], frame: Frame, exchange: Exchange
) -> AsyncGenerator[ServerSentEvent, None]:
    """All events; after an error nothing comes but itself."""
    try:
        for event in frame(first):
            yield _event(event)
        async for piece in rest:
            for event in frame(piece):
                yield _event(event)
        yield DONE
    except ServiceError as error:
        exchange.failure = error
        yield _event(envelope(error, exchange.request_id))
    except Exception:
        log.exception("a stream failed", request_id=exchange.request_id)
        exchange.failure = InferenceFailed("something went wrong inside the service: its log says what")
        yield _event(envelope(exchange.failure, exchange.request_id))


def _event(data: dict[str, Any]) -> ServerSentEvent:
    return ServerSentEvent(orjson.dumps(data).decode(), sep=SEPARATOR)
