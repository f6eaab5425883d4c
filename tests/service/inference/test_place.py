"""When a place may be asked: only after it has answered with the right bundle, and as long as it goes on answering."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import numpy as np
import pytest

from deploy.triton.protocol import BatchNews, EngineStats, FinishReason, GenerationBatch, RowUpdate
from service.errors import InferenceFailed, ServiceError, Unavailable
from service.inference.fleet import Fleet
from service.inference.place import Place, Standing
from service.inference.protocol import BundleIdentity, EngineCapacity, ModelTimes, ServerInfo

BUNDLE = BundleIdentity(name="ours", sha256="a" * 64)
OTHER = BundleIdentity(name="theirs", sha256="b" * 64)
CAPACITY = EngineCapacity(slots=4, prefill_tokens=2048, max_source_tokens=2048, max_target_tokens=512)
SPECIAL = {"<generation>": 5, "<qa>": 6, "<summary>": 7, "<s>": 1, "<sep>": 4}
STATS = EngineStats(slots_used=1, slots_total=4, waiting_rows=0)


class Models:
    """Answers every canary, unless it is told otherwise."""

    def __init__(self) -> None:
        self.bundle, self.capacity = BUNDLE, CAPACITY
        self.error: ServiceError | None = None
        """Of everything."""
        self.canary_error: ServiceError | None = None
        self.ending = FinishReason.LENGTH
        self.score = 1.0
        self.canaries = 0
        self.cancelled: list[int] = []
        self.hold = asyncio.Event()
        """Canaries wait for it."""
        self.hold.set()

    async def start(self, on_lost: Callable[[ServiceError], None]) -> None: ...

    async def close(self) -> None: ...

    async def server(self) -> ServerInfo:
        if self.error is not None:
            raise self.error
        return ServerInfo(name="models", version="1", bundle=self.bundle, engine=self.capacity)

    async def infer(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"emissions": np.full((1, 4, 3), self.score, np.float32)}

    async def times(self, model: str) -> ModelTimes:
        raise AssertionError("no canary asks for times")

    async def generate(self, batch: GenerationBatch) -> AsyncIterator[tuple[BatchNews, EngineStats]]:
        await self.hold.wait()
        if self.canary_error is not None:
            raise self.canary_error
        self.canaries += 1
        (row,) = batch.rows
        update = RowUpdate(row_id=row.row_id, tokens=np.zeros(0, np.int32), finish_reason=self.ending, task=batch.task)
        yield BatchNews(updates=[]), STATS
        yield BatchNews(updates=[update]), STATS

    async def cancel(self, row_ids: Iterable[int]) -> None:
        self.cancelled.extend(row_ids)

    async def stats(self) -> EngineStats:
        return STATS


@pytest.fixture
def models() -> Models:
    return Models()


@pytest.fixture
def place(models: Models) -> Place:
    return Place("the place", models, BUNDLE, SPECIAL, timeout_s=5.0)


async def test_a_place_is_ready_after_a_canary_of_every_task(models: Models, place: Place) -> None:
    assert (place.standing, place.usable) == (Standing.UNPROVEN, False)
    assert "starting" in (place.reason or "")
    await place.check()
    assert (place.standing, place.reason, place.stats) == (Standing.READY, None, STATS)
    assert models.canaries == 3
    await place.check()
    assert models.canaries == 3, "what is proven is only asked who it is"


async def test_a_place_that_serves_another_bundle_is_never_ready(models: Models, place: Place) -> None:
    models.bundle = OTHER
    await place.check()
    assert place.standing is Standing.DOWN
    for word in ("the place", "'theirs' (bbbbbbbbbbbb)", "'ours' (aaaaaaaaaaaa)", "repository build"):
        assert word in (place.reason or "")
    assert models.canaries == 0, "nothing is sent there"
    models.bundle = BUNDLE
    await place.check()
    assert place.usable


async def test_a_place_whose_bundle_changes_under_way_is_found_out_by_the_next_check(
    models: Models, place: Place
) -> None:
    await place.check()
    models.bundle = OTHER
    await place.check()
    assert place.standing is Standing.DOWN


async def test_a_failed_inference_leaves_the_place_ready_unless_a_canary_fails_too(
    models: Models, place: Place
) -> None:
    await place.check()
    place.doubt(InferenceFailed("one bad batch"))
    assert (place.standing, place.usable, place.reason) == (Standing.SUSPECT, True, None)
    await place.check()
    assert (place.standing, models.canaries) == (Standing.READY, 6)
    models.canary_error = InferenceFailed("and the canary as well")
    place.doubt(InferenceFailed("another bad batch"))
    await place.check()
    assert (place.standing, place.reason) == (Standing.DOWN, "and the canary as well")


async def test_a_ready_place_that_is_slow_is_asked_again_before_it_is_given_up(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place("the place", models, BUNDLE, SPECIAL, timeout_s=0.01)
    await place.check()
    monkeypatch.setattr(models, "server", asyncio.Event().wait)
    await place.check()
    assert place.standing is Standing.UNPROVEN
    assert place.reason == "the place did not answer in time"
    monkeypatch.setattr("service.inference.place.CANARY_TIMEOUT_S", 0.01)
    await place.check()
    assert place.standing is Standing.DOWN


async def test_a_suspect_that_is_too_busy_for_its_canaries_keeps_what_waits_for_it(
    models: Models, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place("the place", models, BUNDLE, SPECIAL, timeout_s=5.0)
    await place.check()
    place.doubt(InferenceFailed("one bad batch"))
    monkeypatch.setattr("service.inference.place.CANARY_TIMEOUT_S", 0.01)
    models.hold.clear()
    await place.check()
    assert place.standing is Standing.UNPROVEN
    assert len(models.cancelled) == 1, "nobody waits for that canary any more"
    await place.check()
    assert place.standing is Standing.DOWN


async def test_a_connection_that_is_lost_during_a_check_keeps_what_waits_for_it(models: Models, place: Place) -> None:
    await place.check()

    async def lost() -> EngineStats:
        place.doubt(Unavailable("the stream broke"))
        raise Unavailable("the stream broke")

    models.stats = lost  # type: ignore[method-assign]
    await place.check()
    assert place.standing is Standing.UNPROVEN


async def test_after_a_lost_connection_nobody_knows_who_answers(models: Models, place: Place) -> None:
    await place.check()
    place.doubt(Unavailable("the stream broke"))
    assert (place.standing, place.usable) == (Standing.UNPROVEN, False)
    assert "the stream broke" in (place.reason or "")
    await place.check()
    assert place.usable


async def test_a_doubt_during_a_check_is_not_forgotten(models: Models, place: Place) -> None:
    models.hold.clear()
    checking = asyncio.create_task(place.check())
    await asyncio.sleep(0)
    place.doubt(Unavailable("the stream broke meanwhile"))
    models.hold.set()
    await checking
    assert place.standing is Standing.UNPROVEN
    await place.check()
    assert place.usable


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"error": Unavailable("nobody listens")}, "nobody listens"),
        ({"ending": FinishReason.ERROR}, "the canary for generation ended with ERROR"),
        ({"score": float("nan")}, "scores that are no numbers"),
        ({"bundle": None}, "a readiness check of the place failed: AttributeError"),
    ],
    ids=["unavailable", "ends badly", "nonsense", "whatever else"],
)
async def test_a_place_that_fails_its_canaries_is_down_and_says_why(
    models: Models, place: Place, change: dict[str, object], reason: str
) -> None:
    for name, value in change.items():
        setattr(models, name, value)
    await place.check()
    assert place.standing is Standing.DOWN
    assert reason in (place.reason or "")


@asynccontextmanager
async def watched(place: Place) -> AsyncIterator[None]:
    watcher = asyncio.create_task(place.watch())
    try:
        yield
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher


async def test_a_watched_place_comes_back_by_itself(models: Models, place: Place) -> None:
    changed = asyncio.Event()
    place.on_change = changed.set

    async def standing(wanted: Standing) -> None:
        async with asyncio.timeout(30):
            while place.standing is not wanted:
                changed.clear()
                await changed.wait()

    async with watched(place):
        await standing(Standing.READY)
        models.error = Unavailable("gone")
        place.doubt(models.error)
        await standing(Standing.DOWN)
        models.error = None
        await standing(Standing.READY)


async def test_a_fleet_takes_what_all_of_its_usable_places_take() -> None:
    small, large = Models(), Models()
    small.capacity = replace(CAPACITY, max_target_tokens=64)
    large.capacity = replace(CAPACITY, max_source_tokens=256)
    fleet = Fleet([Place(str(each), each, BUNDLE, SPECIAL, timeout_s=5.0) for each in (small, large)])
    assert (fleet.capacity, fleet.ready, fleet.hopeless) == (None, False, False)
    for place in fleet.places:
        await place.check()
    assert fleet.capacity == replace(CAPACITY, max_source_tokens=256, max_target_tokens=64)
    small.bundle = OTHER
    await fleet.places[0].check()
    assert fleet.capacity == large.capacity
    assert (fleet.ready, fleet.reason) == (True, None)
    large.error = Unavailable("gone")
    await fleet.places[1].check()
    assert (fleet.ready, fleet.hopeless) == (False, True)
    assert "theirs" in fleet.unavailable().message
    assert "gone" in fleet.unavailable().message
    assert fleet.capacity is not None, "what was last known bounds what may wait"
