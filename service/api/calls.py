"""What handlers are given, and how results become responses."""

from __future__ import annotations

import time
import uuid
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from fastapi import Depends, Header, Request

from service.api.errors import ErrorResponse
from service.api.exchange import OPENAI_PATHS, Exchange, exchange_of
from service.api.schemas import AnswerItem, QaResponse, TimingsModel, UsageModel
from service.batching.tiers import Tier
from service.errors import InvalidInput
from service.gateway import Gateway
from service.served import ServedBundle
from service.tasks.answers import Timings, Usage
from service.tasks.questions import Answers
from service.tasks.toolkit import RequestTime

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
TIER_HEADER = "X-Service-Tier"
ServiceTier = Literal["auto", "default", "flex", "priority"]

TOO_LONG = "`context_length_exceeded`: the text has more tokens than the model reads"
BAD_FIELDS = "`invalid_json`, or a field: `invalid_value`, `missing_field`, `unknown_field`"

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: TOO_LONG,
        408: "`request_timeout`: the request did not arrive in time",
        413: "`body_too_large`",
        415: "`unsupported_media_type`: send `application/json`",
        422: BAD_FIELDS,
        431: "`headers_too_large`",
        429: "`overloaded`: `Retry-After` says when to try again; `X-Should-Retry: true`",
        500: "`internal`: the model failed on this request",
        503: "`unavailable`: the model cannot be reached, or the service is shutting down; "
        "`Retry-After`, `X-Should-Retry: true`",
        504: f"`deadline_exceeded`: see `{TIMEOUT_HEADER}`; `X-Should-Retry: false`",
    }.items()
}
"""What every endpoint of the models may answer."""

OPENAI_ERRORS: dict[int | str, dict[str, Any]] = {
    **{status: error for status, error in ERRORS.items() if status != 422},
    400: {"model": ErrorResponse, "description": f"{BAD_FIELDS}, `unsupported_parameter`; or {TOO_LONG}"},
    404: {"model": ErrorResponse, "description": "`model_not_found`"},
}
"""The same of OpenAI's endpoints, with its statuses."""

STREAM_CONTENT = {
    "text/event-stream": {
        "schema": {"type": "string"},
        "example": 'data: {"id":"gen-1","delta":" in 1871","finish_reason":null}\n\n'
        'data: {"id":"gen-1","delta":".","finish_reason":"stop","usage":{},"timings":{}}\n\ndata: [DONE]\n\n',
    }
}


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a model."""

    gateway: Gateway
    served: ServedBundle
    """What was served when the call came."""

    exchange: Exchange
    time: RequestTime
    timeout_s: float | None
    """That the request names."""

    def of_tier(self, tier: Tier) -> Call:
        """The same call, counted as one of a class of service, whose time it has where it names none.

        Raises TooManyRequests where the class has its share.
        """
        settings, exchange = self.gateway.settings, self.exchange
        exchange.tier = tier
        assert exchange.visit is not None, "paths that ask the models are admitted"
        exchange.visit.join(tier)
        timeout_s = self.timeout_s
        if timeout_s is None:
            of_class = settings.tiers.of(tier.value).deadline_s
            timeout_s = settings.limits.timeout_s if of_class is None else min(of_class, settings.limits.max_timeout_s)
        time = RequestTime(arrived_s=exchange.arrived_s, deadline_s=exchange.arrived_s + timeout_s, tier=tier)
        return replace(self, time=time)


async def get_gateway(request: Request) -> Gateway:
    """The parts that the app was built from."""
    return request.app.state.gateway


async def get_call(
    request: Request,
    gateway: Annotated[Gateway, Depends(get_gateway)],
    timeout_ms: Annotated[
        int | None, Header(alias=TIMEOUT_HEADER, ge=1, description="Give up after this many milliseconds, with 504.")
    ] = None,
    service_tier: Annotated[
        ServiceTier | None,
        Header(
            alias=TIER_HEADER,
            description="Class of service: priority goes before what others ask for, flex takes what is left, and has "
            "more time. OpenAI's endpoints read it where the body has no service_tier.",
        ),
    ] = None,
    _request_id: Annotated[
        str | None,
        Header(alias="X-Request-ID", description="Names the request in logs and errors; returned in the same header."),
    ] = None,
) -> Call:
    """The call that a request is.

    Raises InvalidInput for a longer time than there is, TooManyRequests where its class has its share.
    """
    limits = gateway.settings.limits
    most_ms = int(limits.max_timeout_s * 1000)
    if timeout_ms is not None and timeout_ms > most_ms:
        raise InvalidInput(
            f"{TIMEOUT_HEADER} is {timeout_ms}, and {most_ms} is the limit: ask for less", param=TIMEOUT_HEADER
        )
    exchange = exchange_of(request.scope)
    call = Call(
        gateway,
        gateway.served,
        exchange,
        RequestTime(arrived_s=exchange.arrived_s, deadline_s=exchange.arrived_s + limits.timeout_s),
        None if timeout_ms is None else timeout_ms / 1000,
    )
    # The bodies of OpenAI's requests have a say in it.
    return call if request.url.path in OPENAI_PATHS else call.of_tier(tier_named(service_tier))


GatewayOf = Annotated[Gateway, Depends(get_gateway)]
CallOf = Annotated[Call, Depends(get_call)]


def tier_named(name: ServiceTier | None) -> Tier:
    """A class of service by what requests call it; the default one where they leave it to the service."""
    return Tier.DEFAULT if name in (None, "auto") else Tier(name)


def new_id(kind: str) -> str:
    """An id for an answer."""
    return f"{kind}-{uuid.uuid4().hex}"


def now() -> int:
    """Seconds since 1970, as OpenAI's answers carry them."""
    return int(time.time())


def usage_json(usage: Usage) -> dict[str, int]:
    """Tokens as answers carry them."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def timings_json(timings: Timings) -> dict[str, float]:
    """Times as answers carry them."""
    return {f"{name[:-2]}_ms": round(seconds * 1000, 3) for name, seconds in asdict(timings).items()}


def usage_model(usage: Usage) -> UsageModel:
    """Tokens as a schema."""
    return UsageModel(**usage_json(usage))


def timings_model(timings: Timings) -> TimingsModel:
    """Times as a schema."""
    return TimingsModel(**timings_json(timings))


def qa_response(found: Answers) -> QaResponse:
    """Answers as a schema."""
    return QaResponse(
        answers=[AnswerItem(**asdict(answer)) for answer in found.answers], no_answer_score=found.no_answer_score
    )
