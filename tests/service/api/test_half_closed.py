"""Clients that shut their sending side down and wait: answered, and told from clients that have closed."""

from __future__ import annotations

import json
import socket

import pytest

from tests.service.api.running_gateway import ENDLESS, RunningGateway
from tests.service.api.test_leaving import RUNNING, gone
from tests.service.api.test_slow_clients import HEAD, WHOLE, connect, rest


def post(path: str, body: dict, version: str = "1.1") -> bytes:
    """A request's bytes."""
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}"
    return head.encode() + b"\r\n\r\n" + content


def in_chunks(request: bytes) -> bytes:
    """The same request with its body in chunks."""
    head, _, body = request.partition(b"\r\n\r\n")
    head = head[: head.index(b"Content-Length")] + b"Transfer-Encoding: chunked\r\n\r\n"
    return head + b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"


SHORT = {"prompt": "The river", "max_new_tokens": 2, "temperature": 0}
LONG = {**ENDLESS, "max_new_tokens": 100, "min_new_tokens": 100}
QUESTION = {"question": "When?", "context": "The mill by the sea. " * 200}
REQUESTS = {
    "short": (post("/v1/generate", SHORT), [200]),
    "in chunks": (in_chunks(post("/v1/generate", SHORT)), [200]),
    "HTTP/1.0": (post("/v1/generate", LONG, "1.0"), [200]),
    "long": (post("/v1/generate", LONG), [200]),
    "stream": (post("/v1/generate", {**LONG, "stream": True}), [200]),
    "question": (post("/v1/qa", QUESTION), [200]),
    "OpenAI's": (post("/v1/completions", {"model": "trident", "prompt": "a", "max_tokens": 60}), [200]),
    "GET": (WHOLE, [200]),
    "wrong": (post("/v1/generate", {"promt": "a"}), [422]),
    "two": (post("/v1/generate", LONG) + post("/v1/generate", LONG), [200, 200]),
    "an incomplete one behind it": (post("/v1/generate", LONG) + HEAD + b"{", [200]),
    "half a head behind it": (post("/v1/generate", LONG) + WHOLE[:20], [200]),
    "no HTTP behind it": (post("/v1/generate", LONG) + b"what\r\n\r\n", [200, 400]),
}


@pytest.mark.parametrize(("sent", "statuses"), REQUESTS.values(), ids=REQUESTS)
def test_a_half_closed_client_is_answered(gateway: RunningGateway, sent: bytes, statuses: list[int]) -> None:
    with connect(gateway, sent) as connection:
        connection.shutdown(socket.SHUT_WR)
        answer = rest(connection)
    first, *answers = answer.split(b"HTTP/1.1 ")
    assert first == b""
    assert [int(each[:3]) for each in answers] == statuses
    gateway.wait_until(gateway.is_idle, "an idle gateway", timeout_s=5)


def test_the_answer_begins_while_it_is_made(gateway: RunningGateway) -> None:
    with connect(gateway, post("/v1/generate", ENDLESS)) as connection:
        connection.shutdown(socket.SHUT_WR)
        began = connection.recv(1)
        assert began == b"H"
        assert gateway.metric(RUNNING) == 1
        answer = began + rest(connection)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 512


@pytest.mark.parametrize("stream", [False, True])
def test_one_that_closes_later_frees_its_slot(gateway: RunningGateway, stream: bool) -> None:
    before = gone(gateway, "generation")
    with connect(gateway, post("/v1/generate", {**ENDLESS, "stream": stream})) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b"H"
        gateway.wait_until(lambda: gateway.metric(RUNNING) == 1, "a running request")
    gateway.wait_until(lambda: gone(gateway, "generation") == before + 1, "the count of the client", timeout_s=5)
    gateway.wait_until(gateway.is_idle, "an idle gateway", timeout_s=5)


def test_one_that_closes_at_once_frees_its_slot_at_once(gateway: RunningGateway) -> None:
    before = gone(gateway, "generation")
    with connect(gateway, post("/v1/generate", ENDLESS)):
        gateway.wait_until(lambda: gateway.metric(RUNNING) == 1, "a running request")
    gateway.wait_until(lambda: gateway.metric(RUNNING) == 0, "a free slot")
    assert gone(gateway, "generation") == before + 1, "its text ran to its end"


@pytest.mark.parametrize("behind", [WHOLE, WHOLE * 20_000], ids=["one", "more than is read"])
def test_one_that_closes_with_requests_behind_frees_its_slot(gateway: RunningGateway, behind: bytes) -> None:
    before = gone(gateway, "generation")
    with connect(gateway, post("/v1/generate", ENDLESS)) as connection:
        connection.setblocking(False)
        connection.send(behind)
        gateway.wait_until(lambda: gateway.metric(RUNNING) == 1, "a running request")
    gateway.wait_until(lambda: gone(gateway, "generation") == before + 1, "the count of the client", timeout_s=5)
    gateway.wait_until(gateway.is_idle, "an idle gateway", timeout_s=5)
