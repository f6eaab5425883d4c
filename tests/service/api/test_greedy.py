"""Connections that send without end, stall, or never read: memory stays flat, and others are served."""

from __future__ import annotations

import json
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.service.api.greedy import GET, KINDS, LARGE, SMALL_SEGMENT, allow_descriptors, measure
from tests.service.api.running_gateway import ENDLESS, RunningGateway, check_error, running_gateway
from tests.service.api.test_half_closed import post
from tests.service.api.test_leaving import gone
from tests.service.api.test_slow_clients import connect, parsed, rest

FEW, MANY = 40, 1000
MOST_GROWTH_MB = 60
MOST_MB = 400
WRITE_PAUSE_S = 1.0
PER_PEER = 5


@pytest.fixture(scope="module")
def strict(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that lets answers lie for a second, and trusts no address."""
    limits = {"write_pause_s": WRITE_PAUSE_S, "connections_per_peer": PER_PEER, "connections": 60}
    settings = {f"limits__{name}": value for name, value in limits.items()}
    trusted = json.dumps(["127.0.0.1/32"])
    folder = tmp_path_factory.mktemp("strict")
    with running_gateway(nano_bundle, folder, limits__trusted_peers=trusted, **settings) as running:
        yield running
        running.wait_until(running.is_idle, "an idle gateway after all tests", timeout_s=10)
        assert running.stop() == 0


def unread(gateway: RunningGateway, sent: bytes) -> socket.socket:
    """A connection whose kernel buffers are small, so that what is not read stays with the gateway."""
    host, port = gateway.url.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALL_SEGMENT)
    connection.settimeout(30)
    connection.connect((host, int(port)))
    connection.sendall(sent)
    return connection


@pytest.mark.parametrize("kind", KINDS)
def test_others_are_served_beside_greedy_connections(gateway: RunningGateway, kind: str) -> None:
    found = measure(gateway, kind, FEW)
    assert found.peak_rss_mb - found.idle_rss_mb < MOST_GROWTH_MB, found


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_thousand_greedy_connections_cost_little(nano_bundle: Path, tmp_path: Path, kind: str) -> None:
    if not allow_descriptors(2 * MANY):
        pytest.skip(f"needs {2 * MANY} file descriptors: raise the hard limit (ulimit -Hn)")
    with running_gateway(nano_bundle, tmp_path) as gateway:
        found = measure(gateway, kind, MANY, hold_s=5.0)
        assert found.peak_rss_mb < MOST_MB, found
        gateway.wait_until(gateway.is_idle, "an idle gateway after they left")


def test_an_answer_that_is_not_read_ends_its_connection(strict: RunningGateway) -> None:
    cut = {"event": "an answer is not read", "seconds": WRITE_PAUSE_S}
    with unread(strict, LARGE * 20) as connection:
        address = list(connection.getsockname())
        strict.wait_until(
            lambda: any(event.items() >= {**cut, "peer": address}.items() for event in strict.events()), "the cut"
        )
        # What the kernel had taken still comes, and then the end.
        assert rest(connection).count(b"HTTP/1.1 200") < 20


def test_a_stream_that_is_not_read_frees_its_slot(strict: RunningGateway) -> None:
    before = gone(strict, "generation")
    # The kernel's buffers hold little more than what comes first.
    stream = LARGE + post("/v1/generate", {**ENDLESS, "stream": True}) * 5
    with unread(strict, stream):
        strict.wait_until(lambda: gone(strict, "generation") > before, "the end of a stream that nobody reads")
    strict.wait_until(strict.is_idle, "an idle gateway", timeout_s=5)


def test_a_slow_reader_gets_all_of_its_answer(strict: RunningGateway) -> None:
    whole = len(rest(connect(strict, LARGE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))))
    with unread(strict, LARGE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as connection:
        got, began = 0, time.monotonic()
        while piece := connection.recv(whole // 20):
            got += len(piece)
            # Twenty pieces in less than the time that one answer may lie.
            connection.settimeout(30)
            time.sleep(WRITE_PAUSE_S / 100)
    assert got == whole
    assert time.monotonic() - began < 30


def test_a_peer_s_connections_have_a_limit(strict: RunningGateway) -> None:
    before = strict.metric("trident_requests_rejected_total", reason="connections")
    with ExitStack() as stack:
        held = [stack.enter_context(from_address(strict, "127.0.0.9")) for _ in range(PER_PEER)]
        for connection in held:
            connection.sendall(GET)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        with from_address(strict, "127.0.0.9") as refused:
            refused.sendall(GET)
            response = parsed(rest(refused))
        error = check_error(response, 429, "overloaded")
        assert "5 connections are open from 127.0.0.9, and 5 is the limit" in error["message"]
        assert response.headers["connection"] == "close"
        with from_address(strict, "127.0.0.10") as other:
            other.sendall(GET)
            assert other.recv(65536).startswith(b"HTTP/1.1 200 ")
    with from_address(strict, "127.0.0.9") as later:
        later.sendall(GET)
        assert later.recv(65536).startswith(b"HTTP/1.1 200 ")
    assert strict.metric("trident_requests_rejected_total", reason="connections") == before + 1


def test_all_connections_have_a_limit(strict: RunningGateway) -> None:
    before = strict.metric("trident_requests_rejected_total", reason="connections")
    with ExitStack() as stack:
        for _ in range(60):
            stack.enter_context(connect(strict))
        with connect(strict, GET) as refused:
            error = check_error(parsed(rest(refused)), 503, "unavailable")
        assert "60 connections are open, and 60 is the limit" in error["message"]
    strict.wait_until(
        lambda: strict.metric("trident_requests_rejected_total", reason="connections") > before, "a counted refusal"
    )


def from_address(gateway: RunningGateway, address: str) -> socket.socket:
    """A connection from one of loopback's many addresses."""
    host, port = gateway.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30, source_address=(address, 0))


@pytest.mark.parametrize("count", [101, 2000])
@pytest.mark.parametrize("trailers", [False, True])
def test_headers_are_counted(gateway: RunningGateway, count: int, trailers: bool) -> None:
    lines = b"".join(b"X-%d: y\r\n" % index for index in range(count))
    if trailers:
        chunked = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
        sent = b"POST /v1/generate HTTP/1.1\r\nHost: x\r\n" + chunked + lines
    else:
        sent = GET[:-2] + lines
    with connect(gateway, sent + b"\r\n") as connection:
        error = check_error(parsed(rest(connection)), 431, "headers_too_large")
    assert "32768 is the limit of bytes, 100 of headers" in error["message"]


def test_a_gateway_at_its_last_descriptor_goes_on(nano_bundle: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with running_gateway(nano_bundle, tmp_path) as gateway:
        resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE, (60, 60))
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(connect(gateway, GET))
        gateway.wait_until(lambda: gateway.ready_status() == 200, "readiness after they left", timeout_s=10)
        assert gateway.stop() == 0
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_NOFILE)


def test_few_descriptors_are_said_at_the_start() -> None:
    program = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (500, 500))
from service.connection.descriptors import within_descriptors
from service.settings import LimitSettings
print(within_descriptors(LimitSettings()).connections)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "436"
    assert "raise the limit of open files (ulimit -n)" in done.stdout + done.stderr
