"""Too much at once, and too little time: what is refused, with which status, and that nothing is left behind."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from tests.service.api.running_gateway import ENDLESS, RunningGateway, check_error

WAITS = {"prompt": "!", "max_new_tokens": 1}
FILLS_THE_QUEUE = {"prompt": "!" * 7, "max_new_tokens": 1}


@pytest.fixture
def tight(tight_gateway: RunningGateway) -> Iterator[RunningGateway]:
    """The tight gateway, idle before and after."""
    tight_gateway.wait_until(tight_gateway.is_idle, "an idle gateway")
    yield tight_gateway
    tight_gateway.wait_until(tight_gateway.is_idle, "an idle gateway after the test", timeout_s=5)


@contextmanager
def held(gateway: RunningGateway) -> Iterator[httpx.Response]:
    """A stream that holds the only place in the engine."""
    with (
        httpx.Client(base_url=gateway.url, timeout=60) as client,
        client.stream("POST", "/v1/generate", json={**ENDLESS, "stream": True}) as response,
    ):
        assert response.status_code == 200
        yield response


@contextmanager
def waiting(gateway: RunningGateway, body: dict) -> Iterator[None]:
    """A request that waits behind it, until the block ends."""
    before = gateway.metric("trident_num_requests_waiting")
    statuses: list[int] = []

    def send() -> None:
        statuses.append(httpx.post(f"{gateway.url}/v1/generate", json=body, timeout=60).status_code)

    sender = threading.Thread(target=send)
    sender.start()
    gateway.wait_until(lambda: gateway.metric("trident_num_requests_waiting") == before + 1, "a waiting request")
    yield
    sender.join(60)
    assert statuses == [200]


def test_a_full_queue_refuses_with_the_time_to_come_back(tight: RunningGateway) -> None:
    before = tight.metric("trident_requests_rejected_total", reason="queue_full")
    with ExitStack() as stack:
        stack.enter_context(waiting_behind_a_stream(tight, [FILLS_THE_QUEUE]))
        refused = httpx.post(f"{tight.url}/v1/generate", json=WAITS, timeout=60)
    error = check_error(refused, 429, "overloaded")
    assert error["type"] == "overloaded_error"
    assert "8 of 8 tokens" in error["message"]
    assert int(refused.headers["Retry-After"]) >= 1
    assert tight.metric("trident_requests_rejected_total", reason="queue_full") == before + 1


def test_too_many_requests_in_flight_are_refused(tight: RunningGateway) -> None:
    with waiting_behind_a_stream(tight, [WAITS, WAITS]):
        refused = httpx.post(f"{tight.url}/v1/qa", json={}, timeout=60)
        assert httpx.get(f"{tight.url}/v1/models").status_code == 200
        rejected = tight.metric("trident_requests_rejected_total")
        check_error(httpx.post(f"{tight.url}/v1/nope", json={}), 404, "not_found")
        assert tight.metric("trident_requests_rejected_total") == rejected
    error = check_error(refused, 429, "overloaded")
    assert "3 requests are in flight" in error["message"]
    assert refused.headers["Retry-After"] == "1"
    assert tight.metric("trident_requests_rejected_total", reason="concurrency") >= 1


@contextmanager
def waiting_behind_a_stream(gateway: RunningGateway, bodies: list[dict]) -> Iterator[None]:
    """Requests that wait behind a stream; at the end the stream's client leaves and they are answered."""
    with ExitStack() as waiters, held(gateway):
        for body in bodies:
            waiters.enter_context(waiting(gateway, body))
        yield


def test_texts_that_are_too_long_leave_no_memory_behind(gateway: RunningGateway) -> None:
    def refuse(_: int) -> None:
        response = httpx.post(f"{gateway.url}/v1/generate", json={"prompt": "word " * 200_000}, timeout=120)
        check_error(response, 400, "context_length_exceeded", "prompt")

    before = gateway.metric("process_resident_memory_bytes")
    with ThreadPoolExecutor(4) as clients:
        list(clients.map(refuse, range(12)))
    assert gateway.metric("process_resident_memory_bytes") - before < 64 * 2**20


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/generate", ENDLESS),
        ("/v1/generate", {**ENDLESS, "stop": ["never in there"]}),
        ("/v1/summarize", {"text": "The river", "max_new_tokens": 512, "min_new_tokens": 512}),
        ("/v1/qa", {"question": "When?", "context": "The mill by the sea. " * 2000}),
        ("/v1/infer", {"input": "The mill by the sea. " * 20}),
    ],
    ids=["generate", "stop", "summarize", "qa", "infer"],
)
def test_a_deadline_that_cannot_be_met_is_504(gateway: RunningGateway, path: str, body: dict) -> None:
    response = httpx.post(f"{gateway.url}{path}", json=body, headers={"X-Request-Timeout-Ms": "10"}, timeout=60)
    check_error(response, 504, "deadline_exceeded")
    gateway.wait_until(gateway.is_idle, "an idle gateway", timeout_s=5)


def test_a_deadline_while_waiting_is_504_and_leaves_the_queue(tight: RunningGateway) -> None:
    with held(tight):
        headers = {"X-Request-Timeout-Ms": "50"}
        response = httpx.post(f"{tight.url}/v1/generate", json={**WAITS, "stream": True}, headers=headers, timeout=60)
        check_error(response, 504, "deadline_exceeded")
        assert tight.metric("trident_num_requests_waiting") == 0


def test_a_stream_whose_time_is_over_ends_with_the_error(gateway: RunningGateway) -> None:
    before = gateway.metric("trident_requests_total", task="generation", code="504")
    headers = {"X-Request-Timeout-Ms": "150"}
    with httpx.stream(
        "POST", f"{gateway.url}/v1/generate", json={**ENDLESS, "stream": True}, headers=headers
    ) as response:
        assert response.status_code == 200
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
        request_id = response.headers["X-Request-ID"]
    *events, last = [json.loads(item) for item in data]
    assert events
    assert all("delta" in event for event in events)
    assert last["error"]["code"] == "deadline_exceeded"
    assert last["error"]["request_id"] == request_id
    gateway.wait_until(gateway.is_idle, "an idle gateway", timeout_s=5)
    assert gateway.metric("trident_requests_total", task="generation", code="504") == before + 1
