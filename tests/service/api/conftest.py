"""One gateway for all tests that leave it as they found it, and one with hardly any room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service.api.running_gateway import RunningGateway, running_gateway

TIGHT = {
    "batching__running_slots": 1,
    "batching__queue_tokens": 8,
    "local__slots": 4,
    "limits__concurrent_requests": 3,
    "limits__body_bytes": 4096,
    "limits__max_timeout_s": 30,
}


@pytest.fixture(scope="session")
def gateway(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway with the usual settings."""
    with running_gateway(nano_bundle, tmp_path_factory.mktemp("gateway")) as running:
        yield running
        running.wait_until(running.is_idle, "an idle gateway after all tests", timeout_s=5)
        assert running.stop() == 0


@pytest.fixture(scope="session")
def tight_gateway(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway that runs one row at a time and lets few wait."""
    with running_gateway(nano_bundle, tmp_path_factory.mktemp("tight"), **TIGHT) as running:
        yield running
        assert running.stop() == 0


@pytest.fixture
def client(gateway: RunningGateway) -> Iterator[httpx.Client]:
    """An HTTP client of the usual gateway."""
    with httpx.Client(base_url=gateway.url, timeout=60) as http:
        yield http
