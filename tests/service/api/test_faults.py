"""Faults of the service itself: told without their insides, in the same envelope, before or after the status is out."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from deploy.triton.protocol import FinishReason, RowUpdate, Task
from service.app import build_app
from service.batching.rows import RowTicket
from service.settings import LocalSettings, Settings
from tests.service.api.running_gateway import check_error

SECRET = "the password of the database"


@pytest.fixture
def app(nano_bundle: Path):
    """An application whose engine was never started."""
    return build_app(Settings(bundle=nano_bundle, runtime="local", local=LocalSettings(slots=2, threads=1)))


@pytest.fixture
async def client(app) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as made:
        yield made


async def test_an_unforeseen_error_is_a_500_that_tells_nothing(app, client, monkeypatch) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise KeyError(SECRET)

    monkeypatch.setattr(app.state.gateway.served.generation, "start", broken)
    response = await client.post("/v1/generate", json={"prompt": "a"}, headers={"X-Request-ID": "broken-1"})
    error = check_error(response, 500, "internal")
    assert error["request_id"] == "broken-1"
    assert SECRET not in response.text
    assert app.state.gateway.admission.in_flight == 0


async def test_an_unforeseen_error_in_a_stream_is_its_last_event(app, client, monkeypatch) -> None:
    async def breaks_off(ticket: RowTicket) -> AsyncIterator[RowUpdate]:
        token = ticket.row.source.ids[-1:].astype("int32")
        running = FinishReason.RUNNING
        yield RowUpdate(row_id=ticket.row.row_id, tokens=token, finish_reason=running, task=Task.GENERATION)
        raise KeyError(SECRET)

    monkeypatch.setattr(RowTicket, "updates", breaks_off)
    response = await client.post("/v1/generate", json={"prompt": "a", "stream": True})
    assert response.status_code == 200
    first, last = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    assert first["delta"] == "a"
    assert last["error"]["code"] == "internal"
    assert SECRET not in response.text
    count = app.state.gateway.metrics.registry.get_sample_value
    assert count("trident_requests_total", {"task": "generation", "code": "500"}) == 1
    assert app.state.gateway.admission.in_flight == 0
