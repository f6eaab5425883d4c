"""A gRPC server that speaks Triton's protocol and does as a test tells it.

Its `generator` answers every row with the row's own source, a token a response, so that a test knows what must come.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as services

from deploy.triton.protocol import (
    BatchNews,
    EngineStats,
    FinishReason,
    GenerationBatch,
    Row,
    RowUpdate,
    Sampling,
    Source,
    Task,
)
from deploy.triton.wire import RequestKind, Tensors, decode_batch, decode_cancel, decode_kind, encode_news
from service.errors import Unavailable
from service.inference.triton import TritonClient
from service.inference.triton import _read as read_tensors

Answer = tuple[dict[int, list[int]], dict[int, FinishReason]]

STATS = EngineStats(slots_used=3, slots_total=32, waiting_rows=1)
BUNDLE = {"bundle": "scripted", "bundle_sha256": "5" * 64}
DATATYPES = {
    np.dtype(np.int32): "INT32",
    np.dtype(np.int64): "INT64",
    np.dtype(np.float32): "FP32",
    np.dtype(np.float64): "FP64",
}


@dataclass
class ScriptedTriton(services.GRPCInferenceServiceServicer):
    """What it has seen, and what it is to do."""

    ready: bool = True
    model_error: grpc.StatusCode | None = None
    """What `infer` ends with."""

    hold_infer: asyncio.Event | None = None
    """`infer` waits for it."""

    inferring: list[int] = field(default_factory=list)
    """First ids of the requests that have come to `infer`."""

    withdrawn: list[int] = field(default_factory=list)
    """Those of them that were cancelled."""

    refused: set[int] = field(default_factory=set)
    """A batch with one of these rows is answered with an error."""

    held: set[int] = field(default_factory=set)
    """Rows that stay unfinished until they are cancelled."""

    holding: asyncio.Event = field(default_factory=asyncio.Event)
    """A batch with a held row has arrived."""

    parameters: dict[str, dict[str, str]] = field(
        default_factory=lambda: {
            "generator": {**BUNDLE, "slots": "32", "prefill_tokens": "2048", "max_source_tokens": "2048",
                          "max_target_tokens": "512"},
            "qa": dict(BUNDLE),
        }
    )  # fmt: skip
    """Those in the models' configurations."""

    ran: tuple[int, int, int] = (0, 0, 0)
    """Executions, rows and nanoseconds of `qa`."""

    stream_error: grpc.StatusCode | None = None
    """What a stream ends with, at its next cancel request."""

    streams: int = 0
    cancelled: list[int] = field(default_factory=list)

    _cancelled: dict[int, asyncio.Event] = field(default_factory=dict)

    async def ServerReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.ServerReadyResponse(ready=self.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return messages.ServerMetadataResponse(name="triton", version="2.51.0")

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        response = messages.ModelConfigResponse()
        for name, value in self.parameters[request.name].items():
            response.config.parameters[name].string_value = value
        return response

    async def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        executions, rows, nanoseconds = self.ran
        response = messages.ModelStatisticsResponse()
        found = response.model_stats.add(name=request.name, execution_count=executions, inference_count=rows)
        found.inference_stats.compute_infer.ns = nanoseconds
        return response

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Doubles `input_ids`."""
        if self.hold_infer is not None:
            first = int(read_request(request)["input_ids"][0, 0])
            self.inferring.append(first)
            self.holding.set()
            try:
                await self.hold_infer.wait()
            except asyncio.CancelledError:
                self.withdrawn.append(first)
                raise
        if self.model_error is not None:
            await context.abort(self.model_error, "as the test wishes")
        doubled = 2 * read_request(request)["input_ids"]
        return response_of(request.id, {"doubled": doubled.astype(np.float32)})

    async def ModelStreamInfer(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Every request has a task of its own, so that answers come as they are ready."""
        self.streams += 1
        outbox: asyncio.Queue[Any] = asyncio.Queue()
        listener = asyncio.create_task(self._listen(requests, outbox))
        try:
            while (response := await outbox.get()) is not None:
                if isinstance(response, grpc.StatusCode):
                    await context.abort(response, "as the test wishes")
                yield response
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)

    async def _listen(self, requests: AsyncIterator[Any], outbox: asyncio.Queue[Any]) -> None:
        async with asyncio.TaskGroup() as group:
            async for request in requests:
                group.create_task(self._answer(request, outbox))
        outbox.put_nowait(None)

    async def _answer(self, request: Any, outbox: asyncio.Queue[Any]) -> None:
        tensors = read_request(request)
        match decode_kind(tensors):
            case RequestKind.BATCH:
                await self._generate(request.id, decode_batch(tensors), outbox)
                return
            case RequestKind.CANCEL:
                for row_id in decode_cancel(tensors):
                    self.cancelled.append(row_id)
                    self._cancelled.setdefault(row_id, asyncio.Event()).set()
                if self.stream_error is not None:
                    outbox.put_nowait(self.stream_error)
                    return
        outbox.put_nowait(stream_response(request.id, encode_news(BatchNews(updates=[]), STATS)))

    async def _generate(self, request_id: str, batch: GenerationBatch, outbox: asyncio.Queue[Any]) -> None:
        if self.refused & {row.row_id for row in batch.rows}:
            response = messages.ModelStreamInferResponse(error_message="as the test wishes")
            response.infer_response.id = request_id
            outbox.put_nowait(response)
            return
        for row in batch.rows:
            sources = row.source.ids.tolist()
            for token in sources[:-1]:
                await self._send(request_id, row.row_id, [token], FinishReason.RUNNING, outbox)
            if row.row_id in self.held:
                self.holding.set()
                await self._cancelled.setdefault(row.row_id, asyncio.Event()).wait()
                await self._send(request_id, row.row_id, [], FinishReason.CANCELLED, outbox)
            else:
                await self._send(request_id, row.row_id, sources[-1:], FinishReason.STOP, outbox)
        # As Triton closes a decoupled request: a response without outputs.
        outbox.put_nowait(stream_response(request_id, {}))

    async def _send(
        self, request_id: str, row_id: int, tokens: list[int], reason: FinishReason, outbox: asyncio.Queue[Any]
    ) -> None:
        update = RowUpdate(row_id=row_id, tokens=np.array(tokens, np.int32), finish_reason=reason, task=Task.GENERATION)
        outbox.put_nowait(stream_response(request_id, encode_news(BatchNews(updates=[update]), STATS)))
        # Other requests have their turn.
        await asyncio.sleep(0)


def read_request(request: Any) -> Tensors:
    """The tensors of a request."""
    return read_tensors(response_like(request))


def response_like(request: Any) -> Any:
    """A response whose outputs are the request's inputs."""
    response = messages.ModelInferResponse(id=request.id)
    for each in request.inputs:
        response.outputs.add(name=each.name, datatype=each.datatype, shape=each.shape)
    response.raw_output_contents.extend(request.raw_input_contents)
    return response


def response_of(request_id: str, tensors: Tensors) -> Any:
    """The response with the given tensors."""
    response = messages.ModelInferResponse(id=request_id)
    for name, tensor in tensors.items():
        response.outputs.add(name=name, datatype=DATATYPES[tensor.dtype], shape=tensor.shape)
        response.raw_output_contents.append(tensor.tobytes())
    return response


def stream_response(request_id: str, tensors: Tensors) -> Any:
    """The same, on a stream."""
    return messages.ModelStreamInferResponse(infer_response=response_of(request_id, tensors))


def batch_of(*row_ids: int, tokens: int = 3) -> GenerationBatch:
    """Rows whose sources begin with their ids."""
    return GenerationBatch(
        task=Task.GENERATION,
        rows=tuple(
            Row(
                row_id=row_id,
                source=Source(np.arange(row_id, row_id + tokens)),
                sampling=Sampling(max_new_tokens=tokens),
                stream=True,
            )
            for row_id in row_ids
        ),
    )


async def serve(triton: ScriptedTriton, port: int = 0, **options: int) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=[(f"grpc.{name}", value) for name, value in options.items()])
    services.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, port


async def collect(client: TritonClient, batch: GenerationBatch) -> Answer:
    """Each row's tokens and how it ended."""
    tokens: dict[int, list[int]] = {row.row_id: [] for row in batch.rows}
    reasons: dict[int, FinishReason] = {}
    async for news, stats in client.generate(batch):
        assert stats == STATS
        for update in news.updates:
            tokens[update.row_id].extend(update.tokens.tolist())
            if update.finish_reason is not FinishReason.RUNNING:
                reasons[update.row_id] = update.finish_reason
    return tokens, reasons


async def found_again(client: TritonClient) -> dict[int, list[int]]:
    """The tokens of a batch, as soon as the server is reached."""
    while True:
        try:
            return (await collect(client, batch_of(40)))[0]
        except Unavailable:
            # gRPC waits between two attempts to connect; nothing tells when the next one is due.
            await asyncio.sleep(0.05)
