"""A gateway as a process of its own, with a slowed engine inside and real sockets outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.end_to_end.conftest import ROOT, free_port

START_TIMEOUT_S = 60
ENDLESS = {"prompt": "The river", "max_new_tokens": 512, "min_new_tokens": 512, "temperature": 0}
"""As long as a request can be: two seconds of the slowed engine's steps."""


@dataclass(kw_only=True)
class RunningGateway:
    """A running gateway and how to look at it from outside."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def metric(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels."""
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
        """Poll until something can be seen from outside; fail with its name and the log otherwise."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert self.process.poll() is None, f"the gateway ended with {self.process.returncode}\n{self.log_tail()}"
            assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s\n{self.log_tail()}"
            time.sleep(0.01)

    def ready_status(self) -> int:
        """Status of /health/ready; 0 where nothing listens."""
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=10).status_code
        except httpx.TransportError:
            return 0

    def is_idle(self) -> bool:
        """Nothing queued, nothing running, no slot of the engine taken, and no request holds anything."""
        names = (
            *("trident_num_requests_running", "trident_num_requests_waiting", "trident_kv_cache_usage_ratio"),
            *("trident_requests_in_flight", "trident_body_bytes_in_flight", "trident_text_bytes_in_flight"),
        )
        return all(self.metric(name) == 0 for name in names)

    def events(self) -> list[dict[str, Any]]:
        """The log's lines."""
        # Not splitlines, which also splits at characters that JSON leaves as they are.
        return [json.loads(line) for line in self.log.read_text().split("\n") if line.startswith("{")]

    def log_tail(self) -> str:
        """The end of the log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


@contextmanager
def running_gateway(bundle: Path, folder: Path, *, ready: bool = True, **settings: object) -> Iterator[RunningGateway]:
    """A gateway with settings by their names in the environment, without TRIDENT_."""
    port = free_port()
    named = {"bundle": bundle, "runtime": "local", "local__threads": 1, "local__slots": 8, "server__port": port}
    environment = {f"TRIDENT_{name.upper()}": str(value) for name, value in {**named, **settings}.items()}
    log = folder / "gateway.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.service.api.slow_service"],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, **environment},
        )
    gateway = RunningGateway(process=process, url=f"http://127.0.0.1:{port}", log=log)
    try:
        wanted = 200 if ready else 503
        gateway.wait_until(lambda: gateway.ready_status() == wanted, f"readiness {wanted}", START_TIMEOUT_S)
        yield gateway
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def stream_events(client: httpx.Client, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The JSON events of a stream, checked to end with [DONE]."""
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200, response.read()
        assert response.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]


def check_error(response: httpx.Response, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """The envelope, complete; returns the error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (name, error), *rest = response.json().items()
    assert (name, rest) == ("error", [])
    assert error.keys() == {"type", "code", "message", "param", "request_id"}
    assert error["code"] == code, error
    assert error["message"]
    assert error["request_id"] == response.headers["X-Request-ID"]
    assert error["param"] == param, error
    return error
