"""A whole service for end-to-end tests: `trident serve` as a process, a real Triton behind it, real sockets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.server.installation import why_no_wheel
from service.settings import Settings
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
SHIPPED_BUNDLE = Settings().bundle
"""TRIDENT_BUNDLE names another one, for services and tests alike."""

START_TIMEOUT_S = 120


@pytest.fixture(scope="session", autouse=True)
def a_machine_that_triton_runs_on() -> None:
    """Skip where the embedded server cannot run."""
    reason = why_no_wheel()
    if reason is not None:
        pytest.skip(reason)


@dataclass(kw_only=True)
class Service:
    """A running `trident serve` and how to look at it from outside."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path

    def gauge(self, name: str, **labels: str) -> float:
        """Sum of a metric's samples with these labels."""
        families = text_string_to_metric_families(httpx.get(f"{self.url}/metrics").text)
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def wait_until(self, condition, what: str, timeout_s: float = 30.0) -> None:
        """Poll until a condition on the outside view holds; fail with its name and the log's end otherwise."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s\n{self.log_tail()}"
            time.sleep(0.05)

    def is_ready(self) -> bool:
        """Whether /health/ready says 200."""
        try:
            return httpx.get(f"{self.url}/health/ready", timeout=10).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def is_idle(self) -> bool:
        """Nothing queued, nothing running, no slot of the engine taken."""
        gauges = ("trident_num_requests_running", "trident_num_requests_waiting", "trident_kv_cache_usage_ratio")
        return all(self.gauge(name) == 0 for name in gauges)

    def family(self) -> list[psutil.Process]:
        """Every process below this service."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def triton(self) -> psutil.Process:
        """The tritonserver process below this service."""
        return next(child for child in self.family() if child.name() == "tritonserver")

    def log_tail(self) -> str:
        """The end of what the service printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])


TRIDENT = (sys.executable, "-m", "deploy")
TRIDENT_WITHOUT_AN_ENVIRONMENT = (
    sys.executable,
    "-c",
    "from pathlib import Path; from deploy.cli import main; from deploy.server import installation; "
    "installation.TRITON_ENV = Path('/nowhere'); main()",
)
"""As on a machine where `make serve` has made no environment for the embedded Triton."""


def start_service(folder: Path, *arguments: str, trident: tuple[str, ...] = TRIDENT, **environment: str) -> Service:
    """Start `trident serve` on a free port and wait until it is ready."""
    port = free_port()
    log = folder / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*trident, "serve", "--port", str(port), *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            # A service that is killed leaves its Triton's log behind.
            env={**os.environ, "TMPDIR": str(folder), **environment},
        )
    service = Service(process=process, url=f"http://127.0.0.1:{port}", log=log)

    def ready_or_dead() -> bool:
        assert process.poll() is None, f"the service ended with status {process.returncode}\n{service.log_tail()}"
        return service.is_ready()

    try:
        service.wait_until(ready_or_dead, "readiness", START_TIMEOUT_S)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return service


def stop_service(service: Service) -> int:
    """SIGTERM, and the exit status."""
    if service.process.poll() is None:
        service.process.send_signal(signal.SIGTERM)
    return service.process.wait(timeout=60)


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service with the shipped bundle for all tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("service")
    running = start_service(folder, "--repository", str(folder / "model_repository"))
    yield running
    stop_service(running)


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    """A service of a test's own, to be killed, drained or broken."""
    running = start_service(tmp_path, "--repository", str(tmp_path / "model_repository"))
    yield running
    stop_service(running)


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """An HTTP client of the shared service."""
    with httpx.Client(base_url=service.url, timeout=60) as http:
        yield http
