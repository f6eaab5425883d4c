"""Clients that leave, services that drain or have enough to do, Tritons that die."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from tests.end_to_end.conftest import Service, start_service, stop_service

LONG = {"prompt": "A long story begins here:", "max_new_tokens": 400, "min_new_tokens": 400, "stream": True}


def start_stream(client: httpx.Client, lines: list[str], started: threading.Event) -> None:
    with client.stream("POST", "/v1/generate", json={**LONG, "temperature": 1, "seed": 3}) as response:
        for line in response.iter_lines():
            lines.append(line)
            started.set()


def test_a_client_that_disconnects_frees_its_slot(service: Service) -> None:
    with (
        httpx.Client(base_url=service.url, timeout=60) as client,
        client.stream("POST", "/v1/generate", json={**LONG, "temperature": 0}) as response,
    ):
        lines = response.iter_lines()  # kept: httpx closes the connection with its iterator
        next(lines)
        assert service.gauge("trident_num_requests_running") >= 1
    service.wait_until(service.is_idle, "an idle engine after the disconnect", timeout_s=5)


def test_sigterm_lets_a_stream_finish(own_service: Service) -> None:
    lines: list[str] = []
    started = threading.Event()
    with httpx.Client(base_url=own_service.url, timeout=60) as client:
        reader = threading.Thread(target=start_stream, args=(client, lines, started))
        reader.start()
        assert started.wait(30)
        own_service.process.send_signal(signal.SIGTERM)
        reader.join(60)
    assert own_service.process.wait(60) == 0
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    assert json.loads(data[-2])["finish_reason"] in {"length", "stop"}


def test_a_draining_service_says_so_and_takes_nothing_new(own_service: Service) -> None:
    lines: list[str] = []
    started = threading.Event()
    with httpx.Client(base_url=own_service.url, timeout=60) as client, httpx.Client(base_url=own_service.url) as other:
        other.get("/health/ready")
        reader = threading.Thread(target=start_stream, args=(client, lines, started))
        reader.start()
        assert started.wait(30)
        own_service.process.send_signal(signal.SIGTERM)
        own_service.wait_until(lambda: other.get("/health/ready").status_code == 503, "not ready while draining")
        refused = other.post("/v1/generate", json={"prompt": "Hello"})
        reader.join(60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    assert lines[-1] == "data: [DONE]" or lines[-2] == "data: [DONE]"
    assert own_service.process.wait(60) == 0


@pytest.mark.parametrize("victim", ["tritonserver", "triton_python_backend_stub"])
def test_a_triton_that_dies_comes_back_and_nothing_is_left_running(own_service: Service, victim: str) -> None:
    body = {"prompt": "Hello", "max_new_tokens": 4, "temperature": 0}
    before = httpx.post(f"{own_service.url}/v1/generate", json=body, timeout=60).json()["text"]
    first = own_service.triton()
    lines: list[str] = []
    started = threading.Event()
    with httpx.Client(base_url=own_service.url, timeout=60) as client:
        reader = threading.Thread(target=start_stream, args=(client, lines, started))
        reader.start()
        assert started.wait(30)
        for process in own_service.family():
            if process.name() == victim:
                process.kill()
        reader.join(60)
        assert not reader.is_alive()
    assert lines[-1] != "data: [DONE]"
    own_service.wait_until(lambda: not own_service.is_ready(), "not ready after the kill")
    refused = httpx.post(f"{own_service.url}/v1/generate", json=body, timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
    own_service.wait_until(own_service.is_ready, "readiness with a new Triton", timeout_s=90)
    assert own_service.triton().pid != first.pid
    assert httpx.post(f"{own_service.url}/v1/generate", json=body, timeout=60).json()["text"] == before
    own_service.wait_until(own_service.is_idle, "an idle engine with the new Triton")


def test_nothing_outlives_a_service_that_is_killed_while_it_decodes(own_service: Service) -> None:
    regions = list(Path("/dev/shm").glob(f"trident-{own_service.process.pid}-*"))
    assert regions
    lines: list[str] = []
    started = threading.Event()
    with httpx.Client(base_url=own_service.url, timeout=60) as client:
        reader = threading.Thread(target=start_stream_that_breaks, args=(client, lines, started))
        reader.start()
        assert started.wait(30)
        family = own_service.family()
        own_service.process.kill()
        own_service.process.wait(10)
        reader.join(30)
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert not any(region.exists() for region in regions)


def start_stream_that_breaks(client: httpx.Client, lines: list[str], started: threading.Event) -> None:
    with contextlib.suppress(httpx.TransportError):
        start_stream(client, lines, started)


def test_an_overloaded_service_says_when_to_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "service"
    folder.mkdir()
    service = start_service(
        folder, "--repository", str(tmp_path / "repository"), TRIDENT_LIMITS__CONCURRENT_REQUESTS="1"
    )
    try:
        with (
            httpx.Client(base_url=service.url, timeout=60) as client,
            client.stream("POST", "/v1/generate", json={**LONG, "temperature": 0}) as response,
        ):
            lines = response.iter_lines()  # kept: httpx closes the connection with its iterator
            next(lines)
            refused = httpx.post(f"{service.url}/v1/qa", json={"question": "Who?", "context": "Anna."})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "overloaded")
        assert int(refused.headers["Retry-After"]) >= 1
        assert service.gauge("trident_requests_rejected_total", reason="concurrency") == 1
        service.wait_until(service.is_idle, "an idle engine afterwards")
        assert httpx.post(f"{service.url}/v1/qa", json={"question": "Who?", "context": "Anna."}).status_code == 200
    finally:
        assert stop_service(service) == 0
