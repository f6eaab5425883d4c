"""OpenAI's endpoints, for its clients and for load generators that speak its protocol."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import APIRouter
from starlette.responses import Response

from service.api.calls import OPENAI_ERRORS, Call, CallOf, GatewayOf, new_id, now, tier_named, usage_json
from service.api.json_route import JsonRoute
from service.api.openai_fields import REQUEST
from service.api.openai_schemas import ChatRequest, CompletionRequest, WritingRequest
from service.api.responses import JsonResponse
from service.api.streams import open_stream
from service.errors import InvalidInput, ModelNotFound
from service.gateway import Gateway
from service.tasks.answers import Piece, TextAnswer, Usage

ALIAS = "trident"
OWNER = "trident"

FOREIGN = (
    f"Of fields that are not listed here, {', '.join(f'`{name}`' for name in sorted(REQUEST.ignored))} are ignored. "
    "Others are refused by name, unless they are null or have a value that changes nothing, as `n` has with 1."
)

router = APIRouter(prefix="/v1", tags=["OpenAI"], route_class=JsonRoute, responses=OPENAI_ERRORS)
models = APIRouter(prefix="/v1/models", tags=["OpenAI"])


class Shape(Protocol):
    """How one endpoint writes its answers."""

    prefix: str
    """Of ids."""

    whole: str
    """`object` of an answer."""

    chunk: str
    """`object` of a stream's chunks."""

    def choice(self, text: str, finish_reason: str) -> dict[str, Any]:
        """An answer's text."""

    def deltas(self, piece: Piece, *, first: bool) -> Iterable[dict[str, Any]]:
        """A piece's choices, one for each chunk it takes."""


class CompletionShape:
    """Text in `text`."""

    prefix, whole, chunk = "cmpl", "text_completion", "text_completion"

    def choice(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        """An answer's text."""
        return {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}

    def deltas(self, piece: Piece, *, first: bool) -> Iterable[dict[str, Any]]:
        """A piece's choices."""
        yield self.choice(piece.text, None if piece.ending is None else piece.ending.finish_reason)


class ChatShape:
    """Text in a message."""

    prefix, whole, chunk = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def choice(self, text: str, finish_reason: str) -> dict[str, Any]:
        """An answer's text."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}

    def deltas(self, piece: Piece, *, first: bool) -> Iterable[dict[str, Any]]:
        """A piece's choices: who speaks, the text, the end."""
        if first:
            yield self._delta({"role": "assistant", "content": ""})
        if piece.text:
            yield self._delta({"content": piece.text})
        if piece.ending is not None:
            yield self._delta({}, piece.ending.finish_reason)

    def _delta(self, delta: dict[str, str], finish_reason: str | None = None) -> dict[str, Any]:
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}


@router.post("/completions", response_class=JsonResponse, description=f"Go on from a prompt. {FOREIGN}")
async def completions(body: CompletionRequest, call: CallOf) -> Response:
    """Go on from a prompt."""
    _check_model(body.model, call.gateway)
    if isinstance(body.prompt, list):
        _check_ids(body.prompt, call.gateway)
    return await _answer(body, body.prompt, "prompt", body.length_field, CompletionShape(), call)


@router.post(
    "/chat/completions",
    response_class=JsonResponse,
    description=f"Follow the instruction of a conversation. {FOREIGN}",
)
async def chat_completions(body: ChatRequest, call: CallOf) -> Response:
    """Follow the instruction of a conversation."""
    _check_model(body.model, call.gateway)
    if not body.prompt:
        raise InvalidInput("messages hold nothing but white space: write some text", param="messages")
    return await _answer(body, body.prompt, "messages", body.length_field, ChatShape(), call)


@models.head("", include_in_schema=False)
@models.get("", response_class=JsonResponse)
async def list_models(gateway: GatewayOf) -> Response:
    """The served model."""
    return JsonResponse({"object": "list", "data": [_model(gateway, gateway.served.manifest.name)]})


@models.head("/{name}", include_in_schema=False)
@models.get("/{name}", response_class=JsonResponse, responses={404: OPENAI_ERRORS[404]})
async def get_model(name: str, gateway: GatewayOf) -> Response:
    """One model, by its name or as `trident`."""
    _check_model(name, gateway)
    return JsonResponse(_model(gateway, name))


async def _answer(
    body: WritingRequest, text: str | list[int], param: str, length: tuple[str, int], shape: Shape, call: Call
) -> Response:
    length_param, most_tokens = length
    tier = tier_named(body.service_tier) if body.service_tier else call.exchange.tier
    call = call.of_tier(tier)
    answer = await call.served.generation.start(
        text,
        body.sampling(most_tokens),
        call.time,
        param=param,
        length_param=length_param,
        least_param="min_tokens",
        stops=body.stop or (),
        stream=bool(body.stream),
    )
    head = {"id": new_id(shape.prefix), "created": now(), "model": call.served.manifest.name}
    if body.service_tier:
        head["service_tier"] = tier.value
    if body.stream:
        frame = ChunkFrame(shape, {**head, "object": shape.chunk}, body.includes_usage)
        return await open_stream(answer.pieces(), frame, call.exchange)
    return await _whole(answer, shape, head)


async def _whole(answer: TextAnswer, shape: Shape, head: dict[str, Any]) -> Response:
    text, ending = await answer.whole()
    choices = [shape.choice(text, ending.finish_reason)]
    return JsonResponse({**head, "object": shape.whole, "choices": choices, "usage": usage_json(ending.usage)})


@dataclass(slots=True)
class ChunkFrame:
    """Pieces as OpenAI's chunks."""

    shape: Shape
    head: dict[str, Any]
    includes_usage: bool
    _first: bool = True

    def __call__(self, piece: Piece) -> Iterable[dict[str, Any]]:
        """The chunks of a piece."""
        first, self._first = self._first, False
        for choice in self.shape.deltas(piece, first=first):
            yield self._chunk([choice], None)
        if piece.ending is not None and self.includes_usage:
            yield self._chunk([], piece.ending.usage)

    def _chunk(self, choices: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        chunk = {**self.head, "choices": choices}
        if self.includes_usage:
            chunk["usage"] = None if usage is None else usage_json(usage)
        return chunk


def _check_model(name: str, gateway: Gateway) -> None:
    if name not in (gateway.served.manifest.name, ALIAS):
        raise ModelNotFound(
            f"the model {name[:100]!r} is not served here: use {gateway.served.manifest.name} or {ALIAS}", param="model"
        )


def _check_ids(ids: list[int], gateway: Gateway) -> None:
    """Special tokens are the gateway's to set, and one unknown id would fail a whole batch."""
    codec = gateway.served.codec
    if len(ids) >= gateway.served.tools.limits.max_source_tokens:
        # Refused for their number, whatever they are, where it is compared with the limit.
        return
    special = set(codec.special.values())
    for token in ids:
        if not 0 <= token < codec.vocabulary or token in special:
            raise InvalidInput(
                f"prompt holds the token id {token}: ids are 0 to {codec.vocabulary - 1}, special tokens left out",
                param="prompt",
            )


def _model(gateway: Gateway, name: str) -> dict[str, Any]:
    created = int((gateway.settings.bundle / "manifest.json").stat().st_mtime)
    limits = gateway.served.manifest.limits
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "max_model_len": limits.max_source_tokens,
        "max_new_tokens": limits.max_target_tokens,
    }
