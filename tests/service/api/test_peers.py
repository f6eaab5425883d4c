"""A peer's share of the places: whom requests count for, directly and behind a proxy."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.service.api.running_gateway import ENDLESS, RunningGateway, check_error, running_gateway

SHARE = 2
SMALL = {"prompt": "The river", "max_new_tokens": 1}
PROXY = "127.0.0.1"


@pytest.fixture(scope="module")
def shared(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that gives a peer two places, and knows one proxy."""
    settings = {"limits__requests_per_peer": SHARE, "limits__trusted_peers": json.dumps([f"{PROXY}/32"])}
    with running_gateway(nano_bundle, tmp_path_factory.mktemp("shared"), **settings) as running:
        yield running
        running.wait_until(running.is_idle, "an idle gateway after all tests", timeout_s=10)
        assert running.stop() == 0


@contextmanager
def client(gateway: RunningGateway, address: str, forwarded: str | None = None) -> Iterator[httpx.Client]:
    """A client at one of loopback's many addresses; `forwarded` is whom it speaks for."""
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    transport = httpx.HTTPTransport(local_address=address)
    with httpx.Client(base_url=gateway.url, transport=transport, headers=headers, timeout=60) as http:
        yield http


@contextmanager
def full(gateway: RunningGateway, address: str, forwarded: str | None = None) -> Iterator[httpx.Client]:
    """A client that has taken its share."""
    with client(gateway, address, forwarded) as http, ExitStack() as streams:
        for _ in range(SHARE):
            answer = streams.enter_context(http.stream("POST", "/v1/generate", json={**ENDLESS, "stream": True}))
            assert answer.status_code == 200
        yield http


@pytest.mark.parametrize(
    ("address", "forwarded", "peer"),
    [("127.0.0.9", None, "127.0.0.9"), (PROXY, "192.0.2.1", "192.0.2.1"), (PROXY, "x, [2001:db8::1]:80", "2001:db8::")],
    ids=["direct", "behind a proxy", "IPv6 behind a proxy"],
)
def test_a_peer_has_its_share_and_others_have_theirs(
    shared: RunningGateway, address: str, forwarded: str | None, peer: str
) -> None:
    before = shared.metric("trident_requests_rejected_total", reason="peer")
    with full(shared, address, forwarded) as greedy:
        refused = greedy.post("/v1/generate", json=SMALL)
        error = check_error(refused, 429, "overloaded")
        assert error["message"].startswith(f"2 requests from {peer}")
        assert "2 is the limit" in error["message"]
        assert refused.headers["X-Should-Retry"] == "true"
        assert greedy.get("/v1/models").status_code == 200
        for other in (None, "192.0.2.2", "2001:db8:0:1::1"):
            with client(shared, PROXY if other else "127.0.0.10", other) as neighbour:
                assert neighbour.post("/v1/generate", json=SMALL).status_code == 200
    assert shared.metric("trident_requests_rejected_total", reason="peer") == before + 1
    shared.wait_until(shared.is_idle, "an idle gateway")
    with client(shared, address, forwarded) as again:
        assert again.post("/v1/generate", json=SMALL).status_code == 200


@pytest.mark.parametrize("forwarded", [None, "unknown", ""])
def test_a_proxy_that_names_nobody_has_no_share(shared: RunningGateway, forwarded: str | None) -> None:
    with full(shared, PROXY, forwarded) as proxy:
        assert proxy.post("/v1/generate", json=SMALL).status_code == 200


def test_nobody_else_is_believed_whom_they_speak_for(shared: RunningGateway) -> None:
    with full(shared, "127.0.0.9", "192.0.2.1"), client(shared, "127.0.0.9", "192.0.2.3") as same:
        check_error(same.post("/v1/generate", json=SMALL), 429, "overloaded")


def test_without_the_setting_one_peer_may_take_every_place(nano_bundle: Path, tmp_path: Path) -> None:
    settings = {"limits__concurrent_requests": SHARE + 1, "limits__trusted_peers": "[]"}
    with running_gateway(nano_bundle, tmp_path, **settings) as gateway:
        with full(gateway, "127.0.0.9") as http:
            assert http.post("/v1/generate", json=SMALL).status_code == 200
        gateway.wait_until(gateway.is_idle, "an idle gateway")
