"""Trident's own endpoints: generate, qa, summarize, infer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter

from deploy.triton.protocol import Task
from service.api.calls import (
    ERRORS,
    STREAM_CONTENT,
    Call,
    CallOf,
    new_id,
    qa_response,
    timings_json,
    timings_model,
    usage_json,
    usage_model,
)
from service.api.json_route import JsonRoute
from service.api.schemas import (
    GenerateRequest,
    GenerateResponse,
    InferRequest,
    InferResponse,
    QaRequest,
    QaResponse,
    SummarizeRequest,
    SummarizeResponse,
)
from service.api.streams import EventStream, Frame, open_stream
from service.errors import InvalidInput
from service.tasks.answers import Ending, Piece, ReadyAnswer, TextAnswer
from service.tasks.questions import Answers
from service.tasks.writing import summary_beams, summary_sampling

router = APIRouter(prefix="/v1", tags=["Trident"], route_class=JsonRoute, responses=ERRORS)

STREAMS: dict[int | str, dict[str, Any]] = {200: {"content": STREAM_CONTENT}}


@router.post("/generate", response_model=GenerateResponse, responses=STREAMS)
async def generate(body: GenerateRequest, call: CallOf) -> GenerateResponse | EventStream:
    """Go on from a prompt, or follow an instruction."""
    answer = await call.served.generation.start(
        body.prompt, body.sampling(), call.time, param="prompt", stops=body.stop, stream=body.stream
    )
    if body.stream:
        return await _stream(answer, call, "gen")
    return _generated(call, *await answer.whole())


@router.post("/qa")
async def qa(body: QaRequest, call: CallOf) -> QaResponse:
    """Find the answer to a question in a text."""
    found = await call.served.questions.answer(
        body.question, body.context, call.time, top_k=body.top_k, min_score=body.min_score, param="question"
    )
    return qa_response(found)


@router.post("/summarize", response_model=SummarizeResponse, responses=STREAMS)
async def summarize(body: SummarizeRequest, call: CallOf) -> SummarizeResponse | EventStream:
    """Say in short what a text says. A text of fewer than 20 tokens is its own summary, with `finish_reason` `stop`
    (`length` where `max_new_tokens` cuts it); the model writes one only where `min_new_tokens` asks for more than that.
    """
    beams = body.num_beams or summary_beams(call.served.tools.limits.max_beams, stream=body.stream)
    if body.stream and beams > 1:
        raise InvalidInput(
            f"num_beams is {beams}, and a stream has one: leave num_beams out, or do not stream", param="num_beams"
        )
    sampling = summary_sampling(max_new_tokens=body.max_new_tokens, min_new_tokens=body.min_new_tokens, num_beams=beams)
    answer = await call.served.summary.start(body.text, sampling, call.time, param="text", stream=body.stream)
    if body.stream:
        return await _stream(answer, call, "sum")
    return _summarized(*await answer.whole())


@router.post("/infer")
async def infer(body: InferRequest, call: CallOf) -> InferResponse:
    """Answer an input with the task it is meant for."""
    routed = await call.served.routing.infer(body.input, body.context, Task[body.task.upper()], call.time)
    call.exchange.task = routed.task.name.lower()
    result: GenerateResponse | SummarizeResponse | QaResponse
    if isinstance(routed.result, Answers):
        result = qa_response(routed.result)
    elif routed.task is Task.SUMMARY:
        result = _summarized(routed.result.text, routed.result.ending)
    else:
        result = _generated(call, routed.result.text, routed.result.ending)
    return InferResponse.model_validate(
        {
            "task": routed.task.name.lower(),
            "route": {task.name.lower(): share for task, share in routed.route.items()},
            "result": result,
        }
    )


def _generated(call: Call, text: str, ending: Ending) -> GenerateResponse:
    return GenerateResponse(
        id=new_id("gen"),
        model=call.served.manifest.name,
        text=text,
        finish_reason=ending.finish_reason,
        usage=usage_model(ending.usage),
        timings=timings_model(ending.timings),
    )


def _summarized(text: str, ending: Ending) -> SummarizeResponse:
    return SummarizeResponse(
        summary=text,
        finish_reason=ending.finish_reason,
        usage=usage_model(ending.usage),
        timings=timings_model(ending.timings),
    )


async def _stream(answer: TextAnswer | ReadyAnswer, call: Call, kind: str) -> EventStream:
    return await open_stream(answer.pieces(), _frame(new_id(kind)), call.exchange)


def _frame(answer_id: str) -> Frame:
    """Pieces as Trident's events. The last also carries usage and timings."""

    def frame(piece: Piece) -> Iterator[dict[str, Any]]:
        if piece.ending is None:
            yield {"id": answer_id, "delta": piece.text, "finish_reason": None}
        else:
            yield {
                "id": answer_id,
                "delta": piece.text,
                "finish_reason": piece.ending.finish_reason,
                "usage": usage_json(piece.ending.usage),
                "timings": timings_json(piece.ending.timings),
            }

    return frame
