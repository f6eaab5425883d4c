"""Clients that send slowly, too much of a head, or nothing: they end, and keep nobody else out."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.service.api.running_gateway import RunningGateway, check_error, running_gateway

PAUSE_S = 3.0
HEAD_S = 1.0
IMPATIENT = {
    "limits__body_pause_s": PAUSE_S,
    "limits__body_timeout_s": 2 * PAUSE_S,
    "limits__head_timeout_s": HEAD_S,
    "server__keep_alive_s": 5,
    "limits__concurrent_requests": 4,
    "limits__body_bytes_in_flight": 2 << 20,
}
HEAD = b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
HALF_A_HEAD = b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nX-Request-ID: slow-head\r\nContent-"
WHOLE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LONG_LINE = b"GET /health/live HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 70_000


@pytest.fixture(scope="module")
def impatient(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that waits for nobody long, and has four places."""
    with running_gateway(nano_bundle, tmp_path_factory.mktemp("impatient"), **IMPATIENT) as running:
        yield running
        running.wait_until(running.is_idle, "an idle gateway after all tests", timeout_s=10)
        assert running.stop() == 0


def connect(gateway: RunningGateway, sent: bytes = b"") -> socket.socket:
    """A connection that has sent something."""
    address = httpx.URL(gateway.url)
    connection = socket.create_connection((address.host, address.port or 0), timeout=30)
    connection.sendall(sent)
    return connection


def rest(connection: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    answer = b""
    try:
        while piece := connection.recv(65536):
            answer += piece
    except ConnectionResetError:
        # The gateway closed before it had read everything; what it said has come before that.
        pass
    return answer


def parsed(answer: bytes) -> httpx.Response:
    """An answer as a response."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = httpx.Headers([line.split(": ", 1) for line in lines])
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)


@contextmanager
def many(gateway: RunningGateway, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(connect(gateway, sent)) for _ in range(count)]


def test_stalled_uploads_keep_nobody_out_and_end(impatient: RunningGateway) -> None:
    body = {"prompt": "a", "max_new_tokens": 1}
    with many(impatient, 300, HEAD + b'{"prompt": "') as stalled:
        impatient.wait_until(lambda: impatient.metric("trident_body_bytes_in_flight") == 300 * 12, "300 uploads")
        assert httpx.post(f"{impatient.url}/v1/generate", json=body, timeout=60).status_code == 200
        assert impatient.metric("trident_requests_in_flight") == 0
        for connection in stalled:
            response = parsed(rest(connection))
            error = check_error(response, 408, "request_timeout")
            assert response.headers["connection"] == "close"
            assert error["message"].startswith("12 bytes of the body arrived")
    impatient.wait_until(impatient.is_idle, "an idle gateway")


def test_an_upload_that_trickles_ends_when_its_time_is_over(impatient: RunningGateway) -> None:
    with connect(impatient, HEAD) as connection:
        began = time.monotonic()
        connection.settimeout(PAUSE_S / 4)
        answer = b""
        while not answer:
            try:
                connection.sendall(b" ")
                answer = connection.recv(65536)
            except TimeoutError:
                assert time.monotonic() - began < 30
        assert time.monotonic() - began > 1.5 * PAUSE_S, "every pause was short enough"
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_bodies_in_flight_have_a_limit(impatient: RunningGateway) -> None:
    with many(impatient, 2, HEAD + b" " * 900_000):
        impatient.wait_until(lambda: impatient.metric("trident_body_bytes_in_flight") == 1_800_000, "two uploads")
        response = httpx.post(f"{impatient.url}/v1/qa", json={"question": "?", "context": "a" * 500_000}, timeout=30)
        error = check_error(response, 429, "overloaded")
        assert "2097152 bytes" in error["message"]
        assert response.headers["Retry-After"] == "1"
        assert impatient.metric("trident_requests_rejected_total", reason="body_bytes") >= 1
        body = {"prompt": "a", "max_new_tokens": 1}
        assert httpx.post(f"{impatient.url}/v1/generate", json=body, timeout=60).status_code == 200
    impatient.wait_until(impatient.is_idle, "an idle gateway after the clients left")


@pytest.mark.parametrize("before", [b"", WHOLE, WHOLE + WHOLE], ids=["first", "kept alive", "pipelined"])
def test_half_a_head_is_told_that_it_is_late(impatient: RunningGateway, before: bytes) -> None:
    with connect(impatient, before + HALF_A_HEAD) as connection:
        *answers, last = rest(connection).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200"] * before.count(b"GET")
    error = check_error(parsed(b"HTTP/1.1 " + last), 408, "request_timeout")
    assert error["request_id"] == "slow-head"


@pytest.mark.parametrize("sent", [b"", b"\r\n", WHOLE + b"\r\n"], ids=["nothing", "empty lines", "kept alive"])
def test_a_connection_without_a_head_is_closed(impatient: RunningGateway, sent: bytes) -> None:
    with connect(impatient, sent) as connection:
        answer = rest(connection)
    assert answer.count(b"HTTP/1.1 ") == sent.count(b"GET")


def test_a_head_that_trickles_is_late_too(impatient: RunningGateway) -> None:
    with connect(impatient, HALF_A_HEAD) as connection:
        connection.settimeout(HEAD_S / 5)
        answer = b""
        while not answer:
            try:
                connection.sendall(b"x")
                answer = connection.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_nobody_wants_does_not_keep_its_connection(impatient: RunningGateway) -> None:
    with connect(impatient, HEAD.replace(b"/v1/generate", b"/v1/nothing")) as connection:
        connection.settimeout(HEAD_S / 5)
        answer, closed = b"", False
        while not closed:
            try:
                connection.sendall(b"x")
                piece = connection.recv(65536)
                answer, closed = answer + piece, not piece
            except TimeoutError:
                continue
            except (ConnectionResetError, BrokenPipeError):
                closed = True
    assert answer.startswith(b"HTTP/1.1 404 ")


def test_a_slow_answer_is_no_slow_head(impatient: RunningGateway) -> None:
    body = {"prompt": "The river", "max_new_tokens": 512, "min_new_tokens": 512, "temperature": 0}
    with httpx.Client(base_url=impatient.url, timeout=60) as client:
        began = time.monotonic()
        response = client.post("/v1/generate", json=body)
        assert time.monotonic() - began > HEAD_S
        assert response.status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        LONG_LINE + b"\r\n\r\n",
        LONG_LINE,
        b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n",
        WHOLE[:-2] + b"X: y\r\n" * 10_000 + b"\r\n",
        HEAD.replace(b"Content-Length: 1000000", b"Transfer-Encoding: chunked") + b"0\r\nX: " + b"x" * 70_000,
        HEAD.replace(b"Content-Length: 1000000", b"Transfer-Encoding: chunked") + b"0\r\n" + b"X: y\r\n" * 10_000,
    ],
    ids=["line", "endless line", "URL", "many", "endless trailer", "many trailers"],
)
def test_a_head_that_is_too_large_is_refused(impatient: RunningGateway, sent: bytes) -> None:
    with connect(impatient, sent) as connection:
        response = parsed(rest(connection))
    error = check_error(response, 431, "headers_too_large")
    assert "32768 is the limit" in error["message"]
    assert response.headers["connection"] == "close"


def test_a_head_within_the_limit_is_read(impatient: RunningGateway) -> None:
    headers = {f"X-Header-{index}": "x" * 1000 for index in range(30)}
    assert httpx.get(f"{impatient.url}/health/live", headers=headers).status_code == 200
