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

from deploy.triton.protocol import FinishReason
from service.errors import InferenceFailed, Unavailable
from service.inference.protocol import BundleIdentity, EngineCapacity, ModelTimes
from service.inference.triton import TritonClient, _read, _write
from tests.service.batching.scripted_client import until
from tests.service.inference.scripted_triton import (
    STATS,
    ScriptedTriton,
    batch_of,
    collect,
    found_again,
    response_like,
    serve,
)

IDS = np.array([[1, 2], [3, 4]])


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


async def test_a_call_behind_others_is_withdrawn_and_the_first_is_waited_for(
    client: TritonClient, triton: ScriptedTriton
) -> None:
    triton.hold_infer = asyncio.Event()
    calls = []
    for first in range(3):
        calls.append(asyncio.create_task(client.infer("qa", {"input_ids": np.array([[first]])})))
        await until(lambda first=first: first in triton.inferring, "the call's arrival")
    for each in calls[:2]:
        each.cancel()
    await until(lambda: triton.withdrawn == [1], "the second call's end")
    assert [each.done() for each in calls] == [False, True, False], "the first may be computed: it takes its place"
    triton.hold_infer.set()
    np.testing.assert_array_equal((await calls[2])["doubled"], [[4]])
    await until(calls[0].done, "the first call's end")
    assert [each.cancelled() for each in calls] == [True, True, False]
    assert triton.withdrawn == [1]


async def test_a_computation_that_hangs_is_not_waited_for_for_ever(
    client: TritonClient, triton: ScriptedTriton, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.inference.triton.GIVEN_UP_S", 0.05)
    triton.hold_infer = asyncio.Event()
    call = asyncio.create_task(client.infer("qa", {"input_ids": IDS}))
    await triton.holding.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: triton.withdrawn == [1], "the call's end in Triton")


async def test_cancelling_a_call_is_no_failure_of_the_server(client: TritonClient, triton: ScriptedTriton) -> None:
    triton.hold_infer = asyncio.Event()
    unary = asyncio.create_task(client.infer("qa", {"input_ids": IDS}))
    await triton.holding.wait()
    unary.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unary
