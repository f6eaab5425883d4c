"""The models behind Triton: unary calls for the stateless ones, one long-lived stream for `generator`.

    generate ─┐                              ┌─▶ generate
    cancel ───┼─▶ one ModelStreamInfer ──────┼─▶ cancel       answers find their caller by the request's id
    stats ────┘                              └─▶ stats

Built on the stub that tritonclient ships rather than on its client, which drops the id of a failed request, without
which one bad batch would fail all that share the stream. A stream that breaks fails the requests on it; the next
request opens a new one, and gRPC's channel does the reconnecting.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as services

from deploy.triton.protocol import BatchNews, EngineStats, FinishReason, GenerationBatch
from deploy.triton.wire import Tensors, decode_news, encode_batch, encode_cancel, encode_stats_query
from service.errors import InferenceFailed, ServiceError, Unavailable
from service.inference.protocol import BundleIdentity, EngineCapacity, ModelTimes, ServerInfo

GENERATOR = "generator"
ASKED = (GENERATOR, "qa")
"""The models that the gateway asks."""

KEEPALIVE_S = 5.0
"""A peer that is lost without a word is noticed after two of these: one until the ping, one for its answer."""

GIVEN_UP_S = 2.0
"""How long a computation that nobody waits for any more is waited for: many times what a batch may take, but not for
ever where Triton hangs."""

NANOSECOND = 1e-9
CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Triton is a neighbour: a proxy for the outer world (http_proxy) does not know the way to it.
    ("grpc.enable_http_proxy", 0),
    # A Triton that comes back is found within two seconds; gRPC's own maximum is two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Connections of this channel's own: those that a process shares can be dead, and a new channel would find them.
    ("grpc.use_local_subchannel_pool", 1),
    # The stream is idle for hours: ping all the same, and as often as Triton's own settings (deploy/server) permit.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_DATATYPES = {
    np.dtype(np.bool_): "BOOL",
    np.dtype(np.int32): "INT32",
    np.dtype(np.int64): "INT64",
    np.dtype(np.float32): "FP32",
    np.dtype(np.float64): "FP64",
}
_DTYPES = {name: dtype for dtype, name in _DATATYPES.items()}


class TritonClient:
    """Talks to one Triton server."""

    def __init__(self, url: str, timeout_s: float, *, keepalive_s: float = KEEPALIVE_S) -> None:
        """`url` is host:port of the gRPC service, `timeout_s` the patience for questions about health."""
        self._url, self._timeout_s, self._keepalive_ms = url, timeout_s, int(keepalive_s * 1000)
        self._stream: _Stream | None = None
        self._calls: dict[str, dict[asyncio.Future[Any], None]] = {}
        """Calls of every stateless model that have not been answered, in the order in which they were sent."""

        self._on_lost: Callable[[ServiceError], None] = lambda _: None

    async def start(self, on_lost: Callable[[ServiceError], None] | None = None) -> None:
        """Make the channel; connecting is left to the first call."""
        self._on_lost = on_lost or self._on_lost
        keepalive = (
            ("grpc.keepalive_time_ms", self._keepalive_ms),
            ("grpc.keepalive_timeout_ms", self._keepalive_ms),
            # A ping of any kind waits for its answer for a minute otherwise.
            ("grpc.http2.ping_timeout_ms", self._keepalive_ms),
        )
        self._channel = grpc.aio.insecure_channel(self._url, options=(*CHANNEL_OPTIONS, *keepalive))
        self._stub = services.GRPCInferenceServiceStub(self._channel)

    async def close(self) -> None:
        """Close the stream and the channel."""
        if self._stream is not None:
            await self._stream.close()
        await self._channel.close()

    async def server(self) -> ServerInfo:
        """Who it is and what it serves, if the server and all of its models are ready."""
        with self._mapped_errors():
            ready = await self._stub.ServerReady(messages.ServerReadyRequest(), timeout=self._timeout_s)
            if not ready.ready:
                raise Unavailable(f"Triton at {self._url} is not ready")
            found = await self._stub.ServerMetadata(messages.ServerMetadataRequest(), timeout=self._timeout_s)
            configs = [
                (await self._stub.ModelConfig(messages.ModelConfigRequest(name=name), timeout=self._timeout_s)).config
                for name in ASKED
            ]
        generator, *others = [{name: each.string_value for name, each in found.parameters.items()} for found in configs]
        bundle = self._bundle(generator)
        for name, parameters in zip(ASKED[1:], others, strict=True):
            if self._bundle(parameters) != bundle:
                raise Unavailable(
                    f"Triton at {self._url} serves {GENERATOR} from the bundle {bundle} and {name} from "
                    f"{self._bundle(parameters)}: build the model repository again (trident repository build)"
                )
        return ServerInfo(name=found.name, version=found.version, bundle=bundle, engine=_capacity(generator))

    async def infer(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a stateless model.

        Where it is cancelled, it ends when Triton has ended with it. The first of this client's calls may be computed
        already, which nothing stops; those behind it are withdrawn, and never computed.
        """
        calls = self._calls.setdefault(model, {})
        with self._mapped_errors():
            call = self._stub.ModelInfer(_write(model, "", inputs))
            answer = asyncio.ensure_future(call)
            calls[answer] = None
            try:
                return _read(await asyncio.shield(answer))
            except asyncio.CancelledError:
                if next(iter(calls)) is answer:
                    await asyncio.wait([answer], timeout=GIVEN_UP_S)
                raise
            finally:
                del calls[answer]
                call.cancel()

    async def times(self, model: str) -> ModelTimes:
        """What a stateless model has run, by Triton's statistics."""
        with self._mapped_errors():
            request = messages.ModelStatisticsRequest(name=model)
            (found,) = (await self._stub.ModelStatistics(request, timeout=self._timeout_s)).model_stats
        return ModelTimes(
            runs=found.execution_count,
            rows=found.inference_count,
            seconds=found.inference_stats.compute_infer.ns * NANOSECOND,
        )

    async def generate(self, batch: GenerationBatch) -> AsyncIterator[tuple[BatchNews, EngineStats]]:
        """News until every row has finished."""
        unfinished = len(batch.rows)
        async with self._open_stream().request(encode_batch(batch)) as answers:
            while unfinished:
                news, stats = decode_news(await answers.next())
                unfinished -= sum(update.finish_reason is not FinishReason.RUNNING for update in news.updates)
                yield news, stats

    async def cancel(self, row_ids: Iterable[int]) -> None:
        """End rows."""
        async with self._open_stream().request(encode_cancel(row_ids)) as answers:
            await answers.next()

    async def stats(self) -> EngineStats:
        """Occupancy of the engine."""
        async with self._open_stream().request(encode_stats_query()) as answers:
            return decode_news(await answers.next())[1]

    def _open_stream(self) -> _Stream:
        if self._stream is None or self._stream.broken is not None:
            with self._mapped_errors():
                self._stream = _Stream(self._stub.ModelStreamInfer(), self._url, self._on_lost)
        return self._stream

    def _bundle(self, parameters: Mapping[str, str]) -> BundleIdentity:
        try:
            return BundleIdentity(name=parameters["bundle"], sha256=parameters["bundle_sha256"])
        except KeyError:
            raise Unavailable(
                f"Triton at {self._url} does not say which bundle it serves: its model repository is of another "
                "version; build it again (trident repository build)"
            ) from None

    @contextmanager
    def _mapped_errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise _mapped(error, self._url) from error
        except grpc.aio.UsageError as error:
            raise Unavailable(f"the connection to Triton at {self._url} is closed") from error
        except asyncio.CancelledError as error:
            # Closing the channel cancels the calls on it, not the tasks that wait for them.
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            raise Unavailable(f"the connection to Triton at {self._url} is closed") from error


class _Stream:
    """One bidirectional call, shared by many requests."""

    def __init__(self, call: Any, url: str, on_lost: Callable[[ServiceError], None]) -> None:
        self._call, self._url, self._on_lost = call, url, on_lost
        self._ids = itertools.count(1)
        self._waiting: dict[str, _Answers] = {}
        self._outbox: asyncio.Queue[Any] = asyncio.Queue()
        self.broken: Unavailable | None = None
        self._reader = asyncio.create_task(self._read())
        # gRPC ends the whole call where a task is cancelled while it writes, so callers never write themselves.
        self._writer = asyncio.create_task(self._write())

    def request(self, tensors: Tensors) -> _Answers:
        """A context in which the request's answers can be read."""
        return _Answers(self, str(next(self._ids)), tensors)

    def send(self, answers: _Answers) -> None:
        """Send a request; its answers come to its queue. Raises Unavailable where the stream is broken."""
        if self.broken is not None:
            raise self.broken
        self._waiting[answers.request_id] = answers
        self._outbox.put_nowait(_write(GENERATOR, answers.request_id, answers.tensors))

    def forget(self, answers: _Answers) -> None:
        """Drop whatever still comes for a request."""
        self._waiting.pop(answers.request_id, None)

    async def close(self) -> None:
        """End the call; requests on it fail."""
        self._call.cancel()
        with suppress(asyncio.CancelledError):
            await self._reader

    async def _read(self) -> None:
        reason = Unavailable(f"Triton at {self._url} closed the stream")
        try:
            async for response in self._call:
                self._hand_over(response)
        except grpc.aio.AioRpcError as error:
            reason = Unavailable(f"Triton at {self._url} is unavailable: {error.code().name}, {error.details()}")
        finally:
            # Also where the gateway itself cancels the call, or an answer could not be read.
            self._call.cancel()
            self.broken = reason
            self._writer.cancel()
            self._on_lost(reason)
            for answers in self._waiting.values():
                answers.queue.put_nowait(reason)
            self._waiting.clear()

    async def _write(self) -> None:
        # Where the call has ended, the reader learns why and tells everybody.
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await self._call.write(await self._outbox.get())

    def _hand_over(self, response: Any) -> None:
        answers = self._waiting.get(response.infer_response.id)
        if answers is not None and response.error_message:
            answers.queue.put_nowait(InferenceFailed(f"Triton refused a batch: {response.error_message}"))
        elif answers is not None and response.infer_response.outputs:
            answers.queue.put_nowait(_read(response.infer_response))


class _Answers:
    """The answers of one request, as they come."""

    def __init__(self, stream: _Stream, request_id: str, tensors: Tensors) -> None:
        self.request_id, self.tensors = request_id, tensors
        self.queue: asyncio.Queue[Tensors | Exception] = asyncio.Queue()
        self._stream = stream

    async def __aenter__(self) -> _Answers:
        self._stream.send(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stream.forget(self)

    async def next(self) -> Tensors:
        """The next answer."""
        answer = await self.queue.get()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _capacity(parameters: Mapping[str, str]) -> EngineCapacity:
    """What a generator's configuration says that it takes."""
    names = [each.name for each in fields(EngineCapacity)]
    try:
        return EngineCapacity(**{name: int(parameters[name]) for name in names})
    except (KeyError, ValueError):
        raise Unavailable(
            f"the configuration of {GENERATOR} lacks one of {', '.join(names)}: build the model repository again "
            "(trident repository build)"
        ) from None


def _mapped(error: grpc.aio.AioRpcError, url: str) -> Unavailable | InferenceFailed:
    """CANCELLED and UNKNOWN are what a dying server leaves behind: like UNAVAILABLE, worth another try."""
    if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL):
        return InferenceFailed(f"Triton refused a request: {error.details()}")
    return Unavailable(f"Triton at {url} is unavailable: {error.code().name}, {error.details()}")


def _write(model: str, request_id: str, tensors: Tensors) -> Any:
    request = messages.ModelInferRequest(model_name=model, id=request_id)
    for name, tensor in tensors.items():
        request.inputs.add(name=name, datatype=_DATATYPES[tensor.dtype], shape=tensor.shape)
        request.raw_input_contents.append(tensor.tobytes())
    return request


def _read(response: Any) -> Tensors:
    return {
        output.name: np.frombuffer(content, _DTYPES[output.datatype]).reshape(output.shape)
        for output, content in zip(response.outputs, response.raw_output_contents, strict=True)
    }
