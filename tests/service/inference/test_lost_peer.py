"""A Triton that is lost, with a word or without one: noticed, told, and found again."""

from __future__ import annotations

import asyncio

import pytest

from deploy.server.launcher import KEEPALIVE
from service.errors import Unavailable
from service.inference.triton import KEEPALIVE_S, TritonClient
from tests.service.inference.scripted_triton import ScriptedTriton, batch_of, collect, found_again, serve


@pytest.fixture
async def triton() -> ScriptedTriton:
    return ScriptedTriton()


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
