"""One HTTP request and its answer, as middleware, routes and handlers see it."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.types import Scope

from service.admission import Visit
from service.batching.tiers import Tier
from service.errors import ServiceError

SANE_ID = re.compile(rb"[\x21-\x7e][\x20-\x7e]{0,127}")
"""Printable ASCII, 128 characters at most: it goes into headers, logs and answers."""

TASKS = {
    "/v1/generate": "generation",
    "/v1/qa": "qa",
    "/v1/summarize": "summary",
    "/v1/infer": "infer",
    "/v1/completions": "generation",
    "/v1/chat/completions": "generation",
}
"""Paths that ask the models: admitted, and counted in `requests_total` under these names unless a handler knows
better."""

OPENAI_PATHS = {"/v1/completions", "/v1/chat/completions"}
"""Those of them that OpenAI has, whose clients expect its statuses."""

_KEY = "trident.exchange"


@dataclass(slots=True)
class Exchange:
    """What is known of an exchange so far."""

    request_id: str
    arrived_s: float
    """On the batchers' clock."""

    task: str | None
    """Label in `requests_total`; None is not counted."""

    tier: Tier = Tier.DEFAULT
    """Class of service that it asks for, as far as is known."""

    visit: Visit | None = None
    """What it holds of the gateway's room; None where it asks nothing of the models."""

    status: int = 0
    """Of the response; 0 before it starts."""

    complete: bool = False
    """The response has gone out to its end."""

    client_left: bool = False
    """The connection was closed before that."""

    failure: ServiceError | None = None
    """The error that was answered, or that ended a stream."""

    @property
    def outcome(self) -> int:
        """The status to count: 499 where the client did not wait, as nginx has it."""
        if self.client_left and not self.complete:
            return 499
        return self.failure.status_code if self.failure is not None else self.status


def begin_exchange(scope: Scope, now_s: float) -> Exchange:
    """A new exchange, kept in its scope."""
    exchange = Exchange(
        request_id=request_id_of(scope["headers"]),
        arrived_s=now_s,
        task=TASKS.get(scope["path"]),
        tier=tier_of(scope["headers"]),
    )
    scope[_KEY] = exchange
    return exchange


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The id that the client gives, where it is sane, or a new one. Names of headers are in lower case."""
    given = next((value for name, value in headers if name == b"x-request-id"), b"")
    return given.decode("ascii") if SANE_ID.fullmatch(given) else uuid.uuid4().hex


def tier_of(headers: Iterable[tuple[bytes, bytes]]) -> Tier:
    """The class of service that the headers name; the default one where they name none, or none that there is."""
    given = next((value for name, value in headers if name == b"x-service-tier"), b"")
    return next((tier for tier in Tier if tier.value.encode() == given), Tier.DEFAULT)


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that a scope belongs to."""
    return scope[_KEY]
