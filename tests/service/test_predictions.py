"""What a service has learnt survives its end, damage and foreign files do not; a new place is tried out first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog

from deploy.triton.protocol import Task
from service.batching.tiers import Tier
from service.gateway import Gateway, build_gateway
from service.settings import LocalSettings, Settings, StateSettings
from service.state_file import StateFile
from tests.service.api.running_gateway import running_gateway

KEY = {"bundle": "b", "machine": "m"}
LocalGateway = Callable[..., Gateway]


@pytest.fixture
def local_gateway(nano_bundle: Path, tmp_path: Path) -> LocalGateway:
    """Makes gateways with the engine inside, which share a folder."""

    def make(**state: Any) -> Gateway:
        return build_gateway(
            Settings(
                bundle=nano_bundle,
                runtime="local",
                local=LocalSettings(slots=8, threads=1),
                state=StateSettings(**{"folder": tmp_path / "state", **state}),
            )
        )

    return make


async def ready(gateway: Gateway) -> None:
    (place,) = gateway.served.fleet.places
    await place.check()
    assert place.usable, place.reason


def coefficients(gateway: Gateway) -> list[Any]:
    (rows,), (windows,) = gateway.served.rows.batcher.loads, gateway.served.windows.batcher.loads
    return [rows.latency.state(), rows.steps.state(), windows.latency.state()]  # type: ignore[attr-defined]


async def test_a_new_place_is_tried_out_and_a_known_one_is_not(local_gateway: LocalGateway) -> None:
    first = local_gateway()
    untaught = coefficients(first)
    async with first.running():
        await ready(first)
        learnt = coefficients(first)
        assert all(now != before for now, before in zip(learnt, untaught, strict=True))
        first.served.rows.batcher.forecast.record(first.clock.now_s(), 100, Task.GENERATION)
    second = local_gateway()
    async with second.served.predictions.kept(60):
        # What it begins with, before any place has answered.
        assert coefficients(second) == learnt
        assert second.served.rows.batcher.forecast.all.counts[-1] == pytest.approx(1, abs=0.01)
        assert second.served.predictions.known == {"the engine in this process"}


async def test_calibration_can_be_switched_off(local_gateway: LocalGateway) -> None:
    gateway = local_gateway(calibration_s=0, keep=False)
    untaught = coefficients(gateway)
    async with gateway.running():
        await ready(gateway)
        assert coefficients(gateway) == untaught
    assert not (gateway.settings.state.folder or Path()).exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe",
        b'{"version": 1}',
        b"[" * 100_000,
        json.dumps({"version": 1, "key": {"a": 1}}).encode(),
    ],
    ids=["empty", "cut", "list", "bytes", "short", "deep", "foreign"],
)
def test_a_file_that_is_none_of_ours_is_left_alone_with_one_warning(tmp_path: Path, content: bytes) -> None:
    file = StateFile(tmp_path, KEY)
    file.path.write_bytes(content)
    with structlog.testing.capture_logs() as logs:
        assert file.read() is None
    assert [line["log_level"] for line in logs] == ["warning"]
    file.write({"a": 1})
    assert file.read() is not None


async def test_a_state_that_was_damaged_inside_is_not_used(local_gateway: LocalGateway) -> None:
    first = local_gateway(calibration_s=0)
    async with first.served.predictions.kept(60):
        pass
    (path,) = (first.settings.state.folder or Path()).iterdir()
    kept = json.loads(path.read_text())
    kept["state"]["lengths"]["edges"] = "none"
    path.write_text(json.dumps(kept))
    second = local_gateway()
    with structlog.testing.capture_logs() as logs:
        async with second.served.predictions.kept(60):
            assert second.served.predictions.known == set()
    assert [line["log_level"] for line in logs] == ["warning"]


def test_states_of_other_things_are_other_files(tmp_path: Path) -> None:
    one, other = StateFile(tmp_path, KEY), StateFile(tmp_path, {**KEY, "machine": "n"})
    one.write({"a": 1})
    assert other.read() is None
    found = StateFile(tmp_path, KEY).read()
    assert found is not None
    assert found[0] == {"a": 1}
    assert 0 <= found[1] < 60


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    file = StateFile(tmp_path / "file" / "folder", KEY)
    with structlog.testing.capture_logs() as logs:
        file.write({})
        file.write({})
    assert len(logs) == 1
    assert "TRIDENT_STATE__FOLDER" in logs[0]["event"]


def test_what_is_expected_is_exported(nano_bundle: Path, tmp_path: Path) -> None:
    with running_gateway(nano_bundle, tmp_path, state__folder=tmp_path / "state") as gateway:
        for _ in range(3):
            body = {"prompt": "The river", "max_new_tokens": 4}
            assert httpx.post(f"{gateway.url}/v1/generate", json=body, timeout=60).status_code == 200
        named = {"task": "generation", "length": "<=64", "horizon": "1s"}
        assert gateway.metric("trident_forecast_arrival_rate", **named) > 0
        text = httpx.get(f"{gateway.url}/metrics").text
        for name in ("forecast_error_ratio", "forecast_burst", "answer_length_within_ratio"):
            assert f"trident_{name}{{" in text
        assert gateway.stop() == 0
    assert len(list((tmp_path / "state").iterdir())) == 1


def test_every_class_has_settings() -> None:
    settings = Settings()
    assert [settings.tiers.of(tier.value).share for tier in Tier] == [1.0, 1.0, 0.5]
