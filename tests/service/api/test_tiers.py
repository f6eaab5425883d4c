"""Classes of service as clients name them, and as metrics count them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.api.running_gateway import ENDLESS, RunningGateway, check_error, running_gateway, stream_events

CHAT = {"model": "trident", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0}
COMPLETION = {"model": "trident", "prompt": "Hi", "max_tokens": 2, "temperature": 0}
OPENAI = {"/v1/chat/completions": CHAT, "/v1/completions": COMPLETION}
OWN: dict[str, dict[str, Any]] = {
    "/v1/generate": {"prompt": "Hi", "max_new_tokens": 2},
    "/v1/qa": {"question": "Who?", "context": "Anna."},
    "/v1/summarize": {"text": "Anna came.", "max_new_tokens": 2},
    "/v1/infer": {"input": "Hi", "task": "generation"},
}
FLEX = {"X-Service-Tier": "flex"}


@pytest.fixture(scope="module")
def gateway(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """Three requests at once, one of them flex."""
    with running_gateway(
        nano_bundle,
        tmp_path_factory.mktemp("tiers"),
        limits__concurrent_requests=3,
        tiers__flex__share=0.4,
        tiers__flex__deadline_s=0.5,
    ) as gateway:
        yield gateway


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[httpx.Client]:
    """Requests to it, one at a time."""
    with httpx.Client(base_url=gateway.url, timeout=60) as client:
        yield client
    gateway.wait_until(gateway.is_idle, "the end of all work")


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize(("given", "used"), [("priority", "priority"), ("flex", "flex"), ("auto", "default")])
def test_openais_answers_say_which_class_they_had(client: httpx.Client, path: str, given: str, used: str) -> None:
    answer = client.post(path, json={**OPENAI[path], "service_tier": given})
    assert answer.status_code == 200, answer.text
    assert answer.json()["service_tier"] == used
    chunks = stream_events(client, path, {**OPENAI[path], "service_tier": given})
    assert {chunk["service_tier"] for chunk in chunks} == {used}


@pytest.mark.parametrize("path", OPENAI)
def test_answers_are_silent_about_it_where_requests_are(client: httpx.Client, path: str) -> None:
    assert "service_tier" not in client.post(path, json={**OPENAI[path], "service_tier": None}).json()


@pytest.mark.parametrize("path", OPENAI)
@pytest.mark.parametrize("value", ["scale", "fast", "Priority", "", 1])
def test_another_value_in_the_body_is_refused_with_the_choices(client: httpx.Client, path: str, value: object) -> None:
    error = check_error(
        client.post(path, json={**OPENAI[path], "service_tier": value}), 400, "invalid_value", "service_tier"
    )
    assert all(choice in error["message"] for choice in ("auto", "default", "flex", "priority"))


@pytest.mark.parametrize("path", [*OWN, *OPENAI])
def test_another_value_in_the_header_is_refused_with_the_choices(client: httpx.Client, path: str) -> None:
    answer = client.post(path, json=OWN.get(path) or OPENAI[path], headers={"X-Service-Tier": "scale"})
    error = check_error(answer, 422 if path in OWN else 400, "invalid_value", "X-Service-Tier")
    assert all(choice in error["message"] for choice in ("auto", "default", "flex", "priority"))


@pytest.mark.parametrize("path", [*OWN, *OPENAI])
def test_every_endpoint_reads_the_header_and_counts_by_class(
    client: httpx.Client, gateway: RunningGateway, path: str
) -> None:
    def counted() -> tuple[float, float]:
        return (
            gateway.metric("trident_tier_requests_total", tier="priority", code="200"),
            gateway.metric("trident_tier_request_latency_seconds_count", tier="priority"),
        )

    before = counted()
    answer = client.post(path, json=OWN.get(path) or OPENAI[path], headers={"X-Service-Tier": "priority"})
    assert answer.status_code == 200, answer.text
    gateway.wait_until(lambda: counted() == (before[0] + 1, before[1] + 1), "the count")


def test_the_bodys_class_goes_before_the_headers(client: httpx.Client) -> None:
    answer = client.post("/v1/completions", json={**COMPLETION, "service_tier": "priority"}, headers=FLEX)
    assert answer.json()["service_tier"] == "priority"


def test_a_class_has_its_own_time_where_a_request_names_none(client: httpx.Client) -> None:
    check_error(client.post("/v1/generate", json=ENDLESS, headers=FLEX), 504, "deadline_exceeded")
    patient = {**FLEX, "X-Request-Timeout-Ms": "30000"}
    assert client.post("/v1/generate", json=ENDLESS, headers=patient).status_code == 200


def test_a_class_takes_no_more_than_its_share(client: httpx.Client, gateway: RunningGateway) -> None:
    long = {**FLEX, "X-Request-Timeout-Ms": "30000"}
    before = gateway.metric("trident_tier_requests_rejected_total", tier="flex", reason="concurrency")
    with client.stream("POST", "/v1/generate", json={**ENDLESS, "stream": True}, headers=long):
        answer = httpx.post(f"{gateway.url}/v1/generate", json=OWN["/v1/generate"], headers=FLEX)
        error = check_error(answer, 429, "overloaded")
        assert "1 requests of the class flex are in flight, and 1 is the limit" in error["message"]
        assert httpx.post(f"{gateway.url}/v1/generate", json=OWN["/v1/generate"]).status_code == 200
    after = gateway.metric("trident_tier_requests_rejected_total", tier="flex", reason="concurrency")
    assert after == before + 1
