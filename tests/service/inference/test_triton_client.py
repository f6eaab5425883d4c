"""The Triton client over a real gRPC connection to a server that misbehaves on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from tritonclient.grpc import service_pb2_grpc as services

from deploy.server.launcher import KEEPALIVE
from deploy.triton.protocol import FinishReason, GenerationBatch
from service.errors import InferenceFailed, Unavailable
from service.inference.protocol import BundleIdentity, EngineCapacity, ModelTimes
from service.inference.triton import KEEPALIVE_S, TritonClient, _read, _write
from tests.service.inference.scripted_triton import STATS, ScriptedTriton, batch_of, response_like

IDS = np.array([[1, 2], [3, 4]])
Answer = tuple[dict[int, list[int]], dict[int, FinishReason]]


async def serve(triton: ScriptedTriton, port: int = 0, **options: int) -> tuple[grpc.aio.Server, int]:
    server = grpc.aio.server(options=[(f"grpc.{name}", value) for name, value in options.items()])
    services.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    return server, port


@pytest.fixture
async def triton() -> ScriptedTriton:
    return ScriptedTriton()


@pytest.fixture
async def server(triton: ScriptedTriton) -> AsyncIterator[tuple[grpc.aio.Server, int]]:
    server, port = await serve(triton)
    yield server, port
    await server.stop(None)


@pytest.fixture
async def client(server: tuple[grpc.aio.Server, int]) -> AsyncIterator[TritonClient]:
    client = TritonClient(f"127.0.0.1:{server[1]}", timeout_s=30)
    await client.start()
    yield client
    await client.close()


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


@given(
    st.dictionaries(
        st.sampled_from(["stats", "tokens", "routes"]),
        arrays.arrays(
            st.sampled_from([np.bool_, np.int32, np.int64, np.float32, np.float64]),
            arrays.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4),
        ),
    )
)
def test_tensors_of_every_type_and_shape_survive_the_wire(tensors: dict[str, np.ndarray]) -> None:
    found = _read(response_like(_write("generator", "7", tensors)))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].tobytes() == tensor.tobytes()


async def test_tensors_reach_the_model_and_come_back(client: TritonClient) -> None:
    outputs = await client.infer("qa", {"input_ids": IDS})
    assert outputs["doubled"].dtype == np.float32
    np.testing.assert_array_equal(outputs["doubled"], 2 * IDS)


async def test_a_server_that_is_ready_says_who_it_is(client: TritonClient) -> None:
    found = await client.server()
    assert (found.name, found.version) == ("triton", "2.51.0")


async def test_a_server_says_what_it_serves_and_what_its_engine_takes(
    client: TritonClient, triton: ScriptedTriton
) -> None:
    triton.parameters["generator"]["slots"] = "7"
    found = await client.server()
    assert found.bundle == BundleIdentity(name="scripted", sha256="5" * 64)
    assert found.engine == EngineCapacity(slots=7, prefill_tokens=2048, max_source_tokens=2048, max_target_tokens=512)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        ("generator", {"bundle_sha256": None}, "does not say which bundle it serves"),
        ("qa", {"bundle": None}, "does not say which bundle it serves"),
        ("qa", {"bundle": "other", "bundle_sha256": "7" * 64}, r"bundle 'scripted' \(5+\) and qa from 'other' \(7+\)"),
        ("generator", {"prefill_tokens": None}, "lacks one of slots, prefill_tokens"),
        ("generator", {"slots": "many"}, "lacks one of slots, prefill_tokens"),
    ],
)  # fmt: skip
async def test_a_repository_that_does_not_say_what_it_is_made_of_is_unavailable(
    client: TritonClient, triton: ScriptedTriton, model: str, changes: dict[str, str | None], message: str
) -> None:
    for name, value in changes.items():
        triton.parameters[model].pop(name)
        if value is not None:
            triton.parameters[model][name] = value
    with pytest.raises(Unavailable, match=message):
        await client.server()


async def test_times_are_those_of_the_servers_own_statistics(client: TritonClient, triton: ScriptedTriton) -> None:
    triton.ran = (3, 40, 2_500_000_000)
    assert await client.times("qa") == ModelTimes(runs=3, rows=40, seconds=2.5)


async def test_a_stream_that_breaks_while_nothing_runs_is_told_at_once(triton: ScriptedTriton) -> None:
    server, port = await serve(triton)
    client, lost = TritonClient(f"127.0.0.1:{port}", timeout_s=30), asyncio.Event()
    await client.start(on_lost=lambda _: lost.set())
    await client.stats()
    assert not lost.is_set()
    await server.stop(None)
    await asyncio.wait_for(lost.wait(), 30)
    await client.close()


class Swallower:
    """A way to a port on which everything can get lost without a word, as behind a router that has died."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lost: set[asyncio.Event] = set()
        self._tasks: set[asyncio.Task] = set()

    async def start(self) -> int:
        """Listen; returns the port."""
        self._server = await asyncio.start_server(self._connect, "127.0.0.1", 0)
        return self._server.sockets[0].getsockname()[1]

    def swallow(self) -> None:
        """From now on nothing comes through on the connections that there are; new ones are well."""
        for lost in self._lost:
            lost.set()

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self._port)
        lost = asyncio.Event()
        self._lost.add(lost)
        for source, target in ((reader, there_writer), (there_reader, writer)):
            task = asyncio.create_task(self._carry(source, target, lost))
            self._tasks.add(task)

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, lost: asyncio.Event) -> None:
        while data := await source.read(1 << 16):
            # What is lost is still read, as a network takes it: only its end never comes through either.
            if not lost.is_set():
                target.write(data)
        if not lost.is_set():
            target.close()


async def test_a_peer_that_is_lost_without_a_word_is_noticed_and_found_again(triton: ScriptedTriton) -> None:
    often = {"http2.min_ping_interval_without_data_ms": 50, "http2.max_ping_strikes": 0}
    server, port = await serve(triton, keepalive_permit_without_calls=1, **often)
    way = Swallower(port)
    lost = asyncio.Event()
    client = TritonClient(f"127.0.0.1:{await way.start()}", timeout_s=30, keepalive_s=0.3)
    await client.start(on_lost=lambda _: lost.set())
    triton.held = {20}
    waiting = asyncio.create_task(collect(client, batch_of(20)))
    await triton.holding.wait()
    way.swallow()
    async with asyncio.timeout(30):
        with pytest.raises(Unavailable):
            await waiting
        await lost.wait()
        assert await found_again(client) == {40: [40, 41, 42]}
    await client.close()
    await way.close()
    await server.stop(None)


def test_triton_is_started_so_that_it_permits_the_gateways_pings() -> None:
    assert KEEPALIVE["grpc-http2-min-recv-ping-interval-without-data"] <= KEEPALIVE_S * 1000
    assert KEEPALIVE["grpc-keepalive-permit-without-calls"] == 1


async def test_a_server_that_is_not_ready_is_unavailable(client: TritonClient, triton: ScriptedTriton) -> None:
    triton.ready = False
    with pytest.raises(Unavailable, match="is not ready"):
        await client.server()


async def test_nobody_listening_is_unavailable() -> None:
    server, port = await serve(ScriptedTriton())
    await server.stop(None)
    client = TritonClient(f"127.0.0.1:{port}", timeout_s=30)
    await client.start()
    for call in (client.server(), client.infer("qa", {"input_ids": IDS}), client.stats(), collect(client, batch_of(1))):
        with pytest.raises(Unavailable, match="UNAVAILABLE"):
            await call
    await client.close()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, InferenceFailed),
        (grpc.StatusCode.INTERNAL, InferenceFailed),
        (grpc.StatusCode.CANCELLED, Unavailable),
        (grpc.StatusCode.UNKNOWN, Unavailable),
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.NOT_FOUND, Unavailable),
    ],
    ids=lambda value: getattr(value, "name", None) or value.__name__,
)
async def test_status_codes_become_errors_of_the_gateway(
    client: TritonClient, triton: ScriptedTriton, code: grpc.StatusCode, expected: type[Exception]
) -> None:
    triton.model_error = code
    with pytest.raises(expected, match="as the test wishes"):
        await client.infer("qa", {"input_ids": IDS})
    triton.model_error = None
    assert (await client.infer("qa", {"input_ids": IDS}))["doubled"].shape == IDS.shape


async def test_requests_share_a_stream_and_one_that_lasts_holds_up_no_other(
    client: TritonClient, triton: ScriptedTriton
) -> None:
    triton.held = {20}
    lasting = asyncio.create_task(collect(client, batch_of(20)))
    await triton.holding.wait()
    batches = [batch_of(100 * number, 100 * number + 50, tokens=20) for number in range(1, 9)]
    answers = await asyncio.gather(*(collect(client, batch) for batch in batches))
    for batch, (tokens, reasons) in zip(batches, answers, strict=True):
        assert tokens == {row.row_id: row.source.ids.tolist() for row in batch.rows}
        assert set(reasons.values()) == {FinishReason.STOP}
    assert not lasting.done()
    await client.cancel([20])
    assert (await lasting)[1] == {20: FinishReason.CANCELLED}
    assert triton.streams == 1


async def test_an_error_of_one_request_fails_no_other_on_the_stream(
    client: TritonClient, triton: ScriptedTriton
) -> None:
    triton.refused = {20}
    good, bad, late = await asyncio.gather(
        collect(client, batch_of(10, tokens=9)),
        collect(client, batch_of(20, 30)),
        collect(client, batch_of(40, tokens=9)),
        return_exceptions=True,
    )
    assert isinstance(bad, InferenceFailed)
    assert bad.message == "Triton refused a batch: as the test wishes"
    assert isinstance(good, tuple)
    assert isinstance(late, tuple)
    assert (good[0], late[0]) == ({10: list(range(10, 19))}, {40: list(range(40, 49))})
    assert triton.streams == 1


async def test_cancelled_rows_end_and_the_others_go_on(client: TritonClient, triton: ScriptedTriton) -> None:
    triton.held = {20}
    waiting = asyncio.create_task(collect(client, batch_of(20, 60)))
    await triton.holding.wait()
    await client.cancel([20])
    tokens, reasons = await waiting
    assert reasons == {20: FinishReason.CANCELLED, 60: FinishReason.STOP}
    assert tokens[60] == [60, 61, 62]
    assert triton.cancelled == [20]


async def test_statistics_come_over_the_same_stream(client: TritonClient, triton: ScriptedTriton) -> None:
    assert await client.stats() == STATS
    await collect(client, batch_of(1))
    assert triton.streams == 1


@pytest.mark.parametrize(
    "code",
    [grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE],
    ids=lambda code: code.name,
)
async def test_a_broken_stream_fails_what_is_on_it_and_the_next_request_opens_another(
    client: TritonClient, triton: ScriptedTriton, code: grpc.StatusCode
) -> None:
    triton.held, triton.stream_error = {20, 30}, code
    on_it = [asyncio.create_task(collect(client, batch_of(row_id))) for row_id in (20, 30)]
    await triton.holding.wait()
    # The test's server breaks the stream in place of an answer.
    with pytest.raises(Unavailable, match=code.name):
        await client.cancel([99])
    for failed in await asyncio.gather(*on_it, return_exceptions=True):
        assert isinstance(failed, Unavailable)
    triton.stream_error = None
    assert (await collect(client, batch_of(40)))[0] == {40: [40, 41, 42]}
    assert triton.streams == 2


async def test_a_server_that_comes_back_is_found(triton: ScriptedTriton) -> None:
    server, port = await serve(triton)
    client = TritonClient(f"127.0.0.1:{port}", timeout_s=30)
    await client.start()
    triton.held = {20}
    on_it = asyncio.create_task(collect(client, batch_of(20)))
    await triton.holding.wait()
    await server.stop(None)
    with pytest.raises(Unavailable):
        await on_it
    with pytest.raises(Unavailable):
        await client.stats()

    server, _ = await serve(ScriptedTriton(), port)
    async with asyncio.timeout(30):
        assert await found_again(client) == {40: [40, 41, 42]}
    await client.close()
    await server.stop(None)


async def test_a_caller_that_leaves_disturbs_no_other(client: TritonClient, triton: ScriptedTriton) -> None:
    triton.held = {20}
    leaving = asyncio.create_task(collect(client, batch_of(20)))
    await triton.holding.wait()
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await client.cancel([20])
    assert (await collect(client, batch_of(40)))[0] == {40: [40, 41, 42]}
    assert triton.streams == 1


async def test_a_caller_that_leaves_while_it_writes_disturbs_no_other(
    client: TritonClient, triton: ScriptedTriton
) -> None:
    for row_id in range(10):
        leaving = asyncio.create_task(collect(client, batch_of(row_id, tokens=2000)))
        await asyncio.sleep(0)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
    assert (await collect(client, batch_of(40)))[0] == {40: [40, 41, 42]}
    assert triton.streams == 1


async def test_closing_fails_what_is_in_flight_and_whatever_comes_later(
    client: TritonClient, triton: ScriptedTriton
) -> None:
    triton.held, triton.hold_infer = {20}, asyncio.Event()
    stream = asyncio.create_task(collect(client, batch_of(20)))
    await triton.holding.wait()
    triton.holding.clear()
    unary = asyncio.create_task(client.infer("qa", {"input_ids": IDS}))
    await triton.holding.wait()
    await client.close()
    for call in (stream, unary, client.infer("qa", {"input_ids": IDS}), client.stats(), client.server()):
        with pytest.raises(Unavailable):
            await call


async def test_cancelling_a_call_is_no_failure_of_the_server(client: TritonClient, triton: ScriptedTriton) -> None:
    triton.hold_infer = asyncio.Event()
    unary = asyncio.create_task(client.infer("qa", {"input_ids": IDS}))
    await triton.holding.wait()
    unary.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unary
