"""What load balancers and retrying clients rely on: idle connections, the end of a process, who tries again."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from service.errors import Draining, Overloaded, TooManyBytes, TooManyRequests, Unavailable
from service.server import end_of
from service.settings import ServerSettings
from tests.service.api.running_gateway import ENDLESS, RunningGateway, check_error, running_gateway
from tests.service.api.test_life import Reader
from tests.service.api.test_overload import held
from tests.service.api.test_slow_clients import HEAD, WHOLE, connect, rest

LOAD_BALANCERS_S = {"AWS ALB": 60, "nginx upstream": 60, "AWS NLB": 350, "Azure": 240, "Google Cloud": 600}
"""How long they keep idle connections to the servers behind them, where nobody says otherwise."""

KUBERNETES_S = 30
"""terminationGracePeriodSeconds, where nobody says otherwise."""

GRACE_S = 6.0


@contextmanager
def kept_alive(gateway: RunningGateway) -> Iterator[socket.socket]:
    """A connection that has been answered once."""
    with connect(gateway, WHOLE) as connection:
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 ")
        yield connection


def test_the_defaults_fit_what_stands_around_a_gateway() -> None:
    settings = ServerSettings()
    assert settings.keep_alive_s > max(LOAD_BALANCERS_S.values())
    assert settings.grace_s <= KUBERNETES_S - 5
    assert end_of(settings.grace_s) <= settings.grace_s / 5


def test_an_idle_connection_outlives_five_seconds(gateway: RunningGateway) -> None:
    with kept_alive(gateway) as connection:
        connection.settimeout(6)
        with pytest.raises(TimeoutError):
            connection.recv(65536)
        connection.sendall(WHOLE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_idle_connections_end_after_the_time_of_the_setting(nano_bundle: Path, tmp_path: Path) -> None:
    with running_gateway(nano_bundle, tmp_path, server__keep_alive_s=1) as gateway:
        with kept_alive(gateway) as connection:
            began = time.monotonic()
            assert rest(connection) == b""
            assert 0.5 < time.monotonic() - began < 4
        assert gateway.stop() == 0


def test_answers_of_a_draining_gateway_end_their_connections(nano_bundle: Path, tmp_path: Path) -> None:
    with running_gateway(nano_bundle, tmp_path) as gateway, httpx.Client(base_url=gateway.url, timeout=60) as client:
        whole = Reader(gateway, ENDLESS)
        before = client.post("/v1/generate", json={"prompt": "a", "max_new_tokens": 1})
        assert "connection" not in before.headers
        with held(gateway):
            whole.start()
            gateway.wait_until(lambda: gateway.metric("trident_num_requests_running") == 2, "two running requests")
            gateway.process.terminate()
            gateway.wait_until(lambda: gateway.ready_status() == 503, "readiness to end")
            refused = client.post("/v1/completions", json={"model": "trident", "prompt": "a"})
            check_error(refused, 503, "unavailable")
            answers = [refused, client.get("/health/ready"), client.get("/health/live"), client.post("/v1/nope")]
            too_large = client.post("/v1/generate", content=b"a" * (2 << 20))
        for answer in (*answers, too_large):
            assert answer.headers.get_list("connection") == ["close"]
            assert ("retry-after" in answer.headers) == (answer.status_code == 503)
        assert refused.headers["x-should-retry"] == "true"
        whole.join(60)
        assert whole.status == 200
        assert whole.headers["connection"] == "close"
        assert gateway.process.wait(30) == 0


def test_a_drain_is_over_within_its_time_whatever_goes_on(nano_bundle: Path, tmp_path: Path) -> None:
    """Texts that take longer together, all but one of them waiting, and uploads that never end."""
    limits = {"server__grace_s": GRACE_S, "batching__running_slots": 1}
    with running_gateway(nano_bundle, tmp_path, **limits) as gateway:
        text = {**ENDLESS, "max_new_tokens": 300, "min_new_tokens": 300}
        readers = [Reader(gateway, {**text, "stream": stream}) for stream in (True, False, False, False, False)]
        for reader in readers:
            reader.start()
        gateway.wait_until(lambda: gateway.metric("trident_num_requests_waiting") == 4, "four waiting requests")
        before = gateway.metric("trident_body_bytes_in_flight")
        with connect(gateway, HEAD + b'{"prompt": "'):
            gateway.wait_until(lambda: gateway.metric("trident_body_bytes_in_flight") == before + 12, "an upload")
            began = time.monotonic()
            gateway.process.terminate()
            assert gateway.process.wait(60) == 0
            took_s = time.monotonic() - began
        for reader in readers:
            reader.join(60)
    assert took_s <= GRACE_S
    assert took_s >= GRACE_S / 2, "requests in flight are given their time"
    assert {reader.status for reader in readers} == {200, 503}
    assert all(reader.headers["retry-after"] for reader in readers if reader.status == 503)


@pytest.mark.parametrize("kind", [Overloaded, TooManyRequests, TooManyBytes, Unavailable, Draining])
def test_what_may_be_served_later_says_when(kind: type[Overloaded | Unavailable]) -> None:
    error = kind("full")
    assert error.should_retry
    assert error.retry_after_s is not None
    assert kind("full", retry_after_s=7).retry_after_s == 7


def test_a_client_of_openai_s_does_not_retry_what_was_late(gateway: RunningGateway) -> None:
    def late() -> float:
        return gateway.metric("trident_requests_total", task="generation", code="504")

    before = late()
    with (
        openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="unused", max_retries=2) as ai,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        ai.completions.create(
            model="trident",
            prompt="The river",
            max_tokens=512,
            extra_body={"ignore_eos": True},
            extra_headers={"X-Request-Timeout-Ms": "20"},
        )
    assert caught.value.status_code == 504
    assert caught.value.response.headers["x-should-retry"] == "false"
    gateway.wait_until(lambda: late() > before, "the count of the request")
    assert late() == before + 1


def test_a_client_of_openai_s_retries_what_was_refused_for_the_moment(tight_gateway: RunningGateway) -> None:
    def refused() -> float:
        return tight_gateway.metric("trident_requests_total", task="generation", code="429")

    long = {"model": "trident", "prompt": "!" * 9, "max_tokens": 1}
    before = refused()
    tight_gateway.wait_until(tight_gateway.is_idle, "an idle gateway")
    with openai.OpenAI(base_url=f"{tight_gateway.url}/v1", api_key="unused", max_retries=1) as ai:
        with held(tight_gateway):
            waiting = Reader(tight_gateway, {"prompt": "!" * 7, "max_new_tokens": 1})
            waiting.start()
            tight_gateway.wait_until(
                lambda: tight_gateway.metric("trident_num_requests_waiting") == 1, "a waiting request"
            )
            with pytest.raises(openai.RateLimitError) as caught:
                ai.with_options(max_retries=0).completions.create(**long)
            assert caught.value.response.headers["x-should-retry"] == "true"
        waiting.join(60)
        assert waiting.status == 200
        assert ai.completions.create(**long).choices
    assert refused() == before + 1
