"""Clients that leave before their answer is whole."""

from __future__ import annotations

import json
import socket

import httpx
import pytest

from tests.service.api.running_gateway import ENDLESS, RunningGateway

TOKENS = "trident_generation_tokens_total"
RUNNING = "trident_num_requests_running"


def connect(gateway: RunningGateway, path: str, body: dict) -> socket.socket:
    """A connection that has sent a request."""
    address = httpx.URL(gateway.url)
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    connection = socket.create_connection((address.host, address.port or 0), timeout=30)
    connection.sendall(head.encode() + content)
    return connection


def gone(gateway: RunningGateway, task: str) -> float:
    """How many clients left, as the gateway counts them."""
    return gateway.metric("trident_requests_total", task=task, code="499")


def test_a_stream_s_client_that_leaves_frees_its_slot(gateway: RunningGateway) -> None:
    before, tokens_before = gone(gateway, "generation"), gateway.metric(TOKENS)
    with connect(gateway, "/v1/generate", {**ENDLESS, "stream": True}) as connection:
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert gateway.metric(RUNNING) == 1
    gateway.wait_until(gateway.is_idle, "an idle gateway after the client left", timeout_s=5)
    assert gateway.metric(TOKENS) - tokens_before < ENDLESS["max_new_tokens"]
    gateway.wait_until(lambda: gone(gateway, "generation") == before + 1, "the count of the client that left")


@pytest.mark.parametrize(
    ("task", "path", "body"),
    [
        ("generation", "/v1/generate", ENDLESS),
        ("summary", "/v1/summarize", {"text": "The river", "max_new_tokens": 512, "min_new_tokens": 512}),
        ("qa", "/v1/qa", {"question": "When?", "context": "The mill by the sea. " * 8000}),
        ("generation", "/v1/completions", {"model": "trident", "prompt": "a", "max_tokens": 512, "ignore_eos": True}),
    ],
)
def test_a_client_that_does_not_wait_for_the_whole_answer_frees_its_slot(
    gateway: RunningGateway, task: str, path: str, body: dict
) -> None:
    before = gone(gateway, task)
    with connect(gateway, path, body):
        gateway.wait_until(lambda: gateway.metric(RUNNING) >= 1, "a running request")
    gateway.wait_until(lambda: gone(gateway, task) == before + 1, "the count of the client that left", timeout_s=5)
    gateway.wait_until(gateway.is_idle, "an idle gateway after the client left", timeout_s=5)


def test_a_client_that_leaves_the_queue_makes_room(tight_gateway: RunningGateway) -> None:
    waiting = "trident_num_requests_waiting"
    with connect(tight_gateway, "/v1/generate", {**ENDLESS, "stream": True}) as running:
        assert running.recv(65536)
        with connect(tight_gateway, "/v1/generate", {"prompt": "!", "stream": True}):
            tight_gateway.wait_until(lambda: tight_gateway.metric(waiting) == 1, "a waiting request")
        tight_gateway.wait_until(lambda: tight_gateway.metric(waiting) == 0, "an empty queue", timeout_s=5)
        assert tight_gateway.metric(RUNNING) == 1
    tight_gateway.wait_until(tight_gateway.is_idle, "an idle gateway", timeout_s=5)


def test_a_client_that_leaves_while_it_sends_is_no_error(gateway: RunningGateway) -> None:
    before = gone(gateway, "generation")
    address = httpx.URL(gateway.url)
    with socket.create_connection((address.host, address.port or 0), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
    gateway.wait_until(lambda: gone(gateway, "generation") == before + 1, "the count of the client that left")


def test_no_client_s_behaviour_was_worth_a_warning(gateway: RunningGateway) -> None:
    refused_by_the_parser = "Invalid HTTP request received."
    events = [event for event in gateway.events() if event["event"] != refused_by_the_parser]
    assert [event for event in events if event["level"] not in ("info", "debug")] == []
