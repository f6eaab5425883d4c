"""The door: what a request holds is given back, whatever becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError
from starlette.types import Message, Receive, Scope, Send

from service.admission import Admission
from service.api.exchange import begin_exchange, exchange_of
from service.api.middleware import AdmissionMiddleware
from service.app import build_app
from service.errors import ClientGone, Draining, InvalidInput, TooManyBytes, TooManyRequests, TooManyRequestsFromPeer
from service.settings import LimitSettings, LocalSettings, Settings

KILO = 1024


def small_house() -> Admission:
    """Two places, three kilobytes."""
    return Admission(LimitSettings(concurrent_requests=2, body_bytes=KILO, body_bytes_in_flight=3 * KILO))


def test_a_place_is_taken_when_the_body_is_there_and_not_before() -> None:
    admission = small_house()
    with admission.visit() as uploading, admission.visit(), admission.visit():
        uploading.receive(KILO)
        assert (admission.in_flight, admission.body_bytes) == (0, KILO)
        uploading.enter()
        assert admission.in_flight == 1
    assert (admission.in_flight, admission.body_bytes) == (0, 0)


def test_a_full_house_refuses_at_the_door_and_behind_it() -> None:
    admission = small_house()
    with admission.visit() as first, admission.visit() as second, admission.visit() as late:
        first.enter()
        second.enter()
        with pytest.raises(TooManyRequests, match="2 requests are in flight, and 2 is the limit"):
            late.enter()
        with pytest.raises(TooManyRequests), admission.visit():
            pytest.fail("there was no room")
    assert admission.in_flight == 0


def test_a_peer_that_has_its_share_is_refused_at_the_door_and_behind_it() -> None:
    admission = Admission(LimitSettings(concurrent_requests=3, requests_per_peer=1))
    greedy, other = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
    with admission.visit(greedy) as late:
        with admission.visit(greedy) as first:
            first.enter()
            with pytest.raises(TooManyRequestsFromPeer, match=r"1 requests from 192\.0\.2\.1 are in flight, and 1 is"):
                late.enter()
            with pytest.raises(TooManyRequestsFromPeer), admission.visit(greedy):
                pytest.fail("the peer had its share")
            with admission.visit(other) as neighbour, admission.visit(None) as unknown:
                neighbour.enter()
                unknown.enter()
        late.enter()


def test_bodies_share_their_room() -> None:
    admission = small_house()
    with admission.visit() as first, admission.visit() as second:
        first.receive(2 * KILO)
        with pytest.raises(TooManyBytes, match="hold 2048 of 3072 bytes and leave no room for 1025 more"):
            second.receive(KILO + 1)
        second.receive(KILO)
        assert admission.body_bytes == 3 * KILO
    assert admission.body_bytes == 0


async def test_a_drain_waits_for_those_who_entered_and_for_no_upload() -> None:
    admission = small_house()
    with admission.visit() as uploading:
        with admission.visit() as entered:
            entered.enter()
            drained = asyncio.create_task(admission.drain())
            await asyncio.sleep(0)
            with pytest.raises(Draining):
                uploading.enter()
            assert not drained.done()
        await asyncio.wait_for(drained, 5)


def test_settings_must_have_room_for_one_body() -> None:
    with pytest.raises(
        ValidationError, match=r"limits\.text_bytes_in_flight is 10, less than one body may have \(20\)"
    ):
        LimitSettings(body_bytes=20, text_bytes_in_flight=10)
    with pytest.raises(ValidationError, match=r"limits\.body_bytes_in_flight is 10"):
        LimitSettings(body_bytes=20, body_bytes_in_flight=10)


SCOPE = {"type": "http", "method": "POST", "path": "/v1/qa", "headers": []}


async def ask(admission: Admission, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
    scope = dict(SCOPE)
    begin_exchange(scope, 0.0)

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(_: Message) -> None:
        pass

    await AdmissionMiddleware(app, admission, LimitSettings())(scope, receive, send)


@pytest.mark.parametrize("error", [KeyError, InvalidInput, ClientGone, asyncio.CancelledError, GeneratorExit, OSError])
@pytest.mark.parametrize("entered", [False, True])
async def test_what_a_failed_request_held_is_free(error: type[BaseException], entered: bool) -> None:
    admission = small_house()

    async def fails(scope: Scope, receive: Receive, send: Send) -> None:
        visit = exchange_of(scope).visit
        assert visit is not None
        visit.receive(10)
        if entered:
            visit.enter()
        raise error("no")

    with pytest.raises(error):
        await ask(admission, fails)
    assert (admission.in_flight, admission.body_bytes) == (0, 0)
    await asyncio.wait_for(admission.drain(), 5)


async def test_what_a_cancelled_request_held_is_free() -> None:
    admission, entered = small_house(), asyncio.Event()

    async def waits(scope: Scope, receive: Receive, send: Send) -> None:
        visit = exchange_of(scope).visit
        assert visit is not None
        visit.receive(10)
        visit.enter()
        entered.set()
        await asyncio.Event().wait()

    asking = asyncio.create_task(ask(admission, waits))
    await entered.wait()
    assert (admission.in_flight, admission.body_bytes) == (1, 10)
    asking.cancel()
    with suppress(asyncio.CancelledError):
        await asking
    assert (admission.in_flight, admission.body_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("body", "status"),
    [({"prompt": "a"}, 500), ({"prompt": 1}, 422), ({"prompt": "a" * 1_000_000}, 400), ({"x": "a"}, 422)],
    ids=["fault", "field", "too long", "unknown"],
)
async def test_every_error_s_place_is_free_in_the_whole_application(
    nano_bundle: Path, monkeypatch: pytest.MonkeyPatch, body: dict, status: int
) -> None:
    app = build_app(Settings(bundle=nano_bundle, runtime="local", local=LocalSettings(slots=2, threads=1)))
    seen: list[float] = []
    gauge = app.state.gateway.metrics.registry.get_sample_value

    def breaks(*_: object, **__: object) -> None:
        seen.append(gauge("trident_requests_in_flight"))
        raise KeyError("no")

    monkeypatch.setattr("service.batching.rows.RowLane.submit", breaks)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        response = await client.post("/v1/generate", json=body)
    assert response.status_code == status
    assert seen == ([1] if status == 500 else [])
    assert gauge("trident_requests_in_flight") == 0
    assert gauge("trident_body_bytes_in_flight") == 0
