"""What lives as long as a bundle is served: its codec, the places that serve it, the lanes there, the tasks.

What lives as long as the process is `service/gateway.py`'s.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from deploy.triton.limits import EngineSettings
from deploy.triton.manifest import Manifest, bundle_digest, load_manifest, verify_files
from deploy.triton.protocol import Task
from service.batching.batcher import Batcher
from service.batching.clock import Clock
from service.batching.latency import BatchTime
from service.batching.load import PlaceLoad
from service.batching.pending import RunningBatch
from service.batching.policies import BatchLimits, make_policy
from service.batching.queue import RequestQueue
from service.batching.rows import RowLane
from service.batching.windows import WindowLane
from service.calibration import Calibration
from service.inference.fleet import Fleet
from service.inference.place import Place
from service.inference.protocol import BundleIdentity, InferenceClient, ServerInfo
from service.inference.triton import TritonClient
from service.predictions import Predictions
from service.settings import BatchingSettings, Settings
from service.state_file import StateFile, machine
from service.tasks.questions import Questions
from service.tasks.routing import Routing
from service.tasks.text_room import TextRoom
from service.tasks.tokens import TextCodec
from service.tasks.toolkit import Toolkit
from service.tasks.writing import Writing
from service.telemetry import Metrics

TOKENIZER_FILE = "tokenizer.json"

LEAST_FILLED = 0.75
"""Of a row or window, without padding, which costs as much as tokens do: a quarter of it at most."""

ROWS_AHEAD = 1
"""Batches that wait in the engine for the one before: rows that are not sent yet can still join the next."""

WINDOWS_AHEAD = 1
"""Batches at the stateless model: the one that is computed. A second one behind it would spare the model the way to the
gateway and back, and nothing could overtake it any more: short questions beside books waited nearly twice as long."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedBundle:
    """One bundle, and everything that answers with it."""

    manifest: Manifest
    codec: TextCodec
    fleet: Fleet
    rows: RowLane
    windows: WindowLane
    tools: Toolkit
    generation: Writing
    summary: Writing
    questions: Questions
    routing: Routing
    predictions: Predictions
    settings: Settings

    async def close_lanes(self) -> None:
        """Answer whatever still waits or runs with 503."""
        await self.rows.close()
        await self.windows.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connect to the models and watch them."""
        async with self.predictions.kept(self.settings.state.every_s), self.fleet.running():
            try:
                yield
            finally:
                await self.close_lanes()


def serve_bundle(settings: Settings, clock: Clock, metrics: Metrics, text_room: TextRoom) -> ServedBundle:
    """Everything that answers with the bundle of the settings, joined; nothing runs yet.

    Raises BundleError or ValueError where the bundle is damaged.
    """
    local = settings.runtime == "local"
    manifest = load_manifest(settings.bundle, verify=local)
    if not local:
        # Triton checks the graphs that it loads; the gateway itself reads no more than this.
        verify_files(manifest, settings.bundle, [TOKENIZER_FILE])
    codec = TextCodec(settings.bundle, manifest.special_tokens)
    fleet = Fleet(_places(settings, manifest))
    rows, windows = _row_lane(settings, fleet, clock, metrics), _window_lane(settings, fleet, clock, metrics, manifest)
    tools = Toolkit(
        rows=rows,
        windows=windows,
        fleet=fleet,
        codec=codec,
        text_room=text_room,
        manifest=manifest,
        clock=clock,
        metrics=metrics,
    )
    predictions = Predictions(rows, windows, clock, _state_file(settings, fleet))
    _calibrate_first(settings, rows, windows, manifest, predictions)
    generation, summary = Writing(Task.GENERATION, tools), Writing(Task.SUMMARY, tools)
    questions = Questions(tools)
    return ServedBundle(
        manifest=manifest,
        codec=codec,
        fleet=fleet,
        rows=rows,
        windows=windows,
        tools=tools,
        generation=generation,
        summary=summary,
        questions=questions,
        routing=Routing(tools, generation, questions, summary),
        predictions=predictions,
        settings=settings,
    )


def _places(settings: Settings, manifest: Manifest) -> list[Place]:
    """The places that the settings name."""
    identity = BundleIdentity(name=manifest.name, sha256=bundle_digest(settings.bundle))
    name = f"Triton at {settings.triton.url}" if settings.runtime == "triton" else "the engine in this process"
    return [Place(name, _client(settings), identity, manifest.special_tokens, settings.triton.timeout_s)]


def _state_file(settings: Settings, fleet: Fleet) -> StateFile | None:
    """Where predictions for this bundle on this machine are kept."""
    if not settings.state.keep or settings.state.folder is None:
        return None
    key = {
        "bundle": bundle_digest(settings.bundle),
        "places": [place.name for place in fleet.places],
        "runtime": settings.runtime,
        "threads": settings.local.threads if settings.runtime == "local" else None,
        "machine": machine(),
    }
    return StateFile(settings.state.folder, key)


def _calibrate_first(
    settings: Settings, rows: RowLane, windows: WindowLane, manifest: Manifest, predictions: Predictions
) -> None:
    """Have every place tried out before its first request, unless an earlier run has learnt what it does."""
    for of_rows, of_windows in zip(rows.batcher.loads, windows.batcher.loads, strict=True):
        place = of_rows.place
        calibration = Calibration(
            client=place.client,
            rows=of_rows,
            windows=of_windows,
            special_tokens=manifest.special_tokens,
            window_tokens=manifest.limits.qa_window_tokens,
        )
        place.rehearse = partial(_calibrate, calibration, settings.state.calibration_s, predictions.known)


async def _calibrate(calibration: Calibration, most_s: float, known: set[str], server: ServerInfo) -> None:
    name = calibration.rows.place.name
    if most_s > 0 and name not in known:
        await calibration.run(server, most_s)
        known.add(name)


def _client(settings: Settings) -> InferenceClient:
    """The way to the models that the settings name."""
    if settings.runtime == "triton":
        return TritonClient(settings.triton.url, settings.triton.timeout_s)
    # Only here: a gateway in front of Triton does not need ONNX Runtime.
    from service.inference.local import LocalClient

    knobs = settings.local
    engine = EngineSettings(
        slots=knobs.slots, threads=knobs.threads, device=knobs.device, gap_steps=knobs.gap_steps, verify=False
    )
    return LocalClient(settings.bundle, engine)


def _row_lane(settings: Settings, fleet: Fleet, clock: Clock, metrics: Metrics) -> RowLane:
    knobs = settings.batching

    def load(place: Place) -> PlaceLoad[Any]:
        return PlaceLoad(
            place=place,
            capacity=partial(_row_slots, knobs.running_slots),
            tokens=lambda place: place.server.engine.prefill_tokens if place.server else None,
            latency=BatchTime(),
            ahead=ROWS_AHEAD,
        )

    limits = _limits(knobs, knobs.batch_rows, knobs.batch_tokens)
    return RowLane(fleet, partial(_batcher, settings, fleet, clock, metrics, limits, load))


def _limits(knobs: BatchingSettings, rows: int, tokens: int) -> BatchLimits:
    return BatchLimits(rows=rows, tokens=tokens, least_filled=LEAST_FILLED, seconds=knobs.batch_s)


def _row_slots(most: int | None, place: Place) -> int:
    """Slots of a place that rows may take: half more than the engine has, so that it never waits for the gateway."""
    engine = place.stats.slots_total * 3 // 2
    return engine if most is None else min(engine, most)


def _window_lane(settings: Settings, fleet: Fleet, clock: Clock, metrics: Metrics, manifest: Manifest) -> WindowLane:
    knobs = settings.batching

    def load(place: Place) -> PlaceLoad[Any]:
        return PlaceLoad(
            place=place, capacity=lambda _: knobs.running_windows, latency=BatchTime(), ahead=WINDOWS_AHEAD
        )

    return WindowLane(fleet, partial(_batcher, settings, fleet, clock, metrics, window_limits(knobs, manifest), load))


def window_limits(knobs: BatchingSettings, manifest: Manifest) -> BatchLimits:
    """The largest batch of question answering windows."""
    tokens = min(knobs.batch_tokens, knobs.window_tokens)
    return _limits(knobs, min(knobs.batch_rows, manifest.limits.max_batch_size), tokens)


def _batcher(
    settings: Settings,
    fleet: Fleet,
    clock: Clock,
    metrics: Metrics,
    limits: BatchLimits,
    load: Callable[[Place], PlaceLoad[Any]],
    send: Callable[[RunningBatch[Any]], None],
) -> Batcher[Any]:
    """A batcher around a lane's `send`."""
    knobs = settings.batching

    def measured_send(batch: RunningBatch[Any]) -> None:
        metrics.observe_batch(batch)
        send(batch)

    return Batcher(
        queue=RequestQueue(knobs.queue_tokens),
        policy=make_policy(knobs),
        limits=limits,
        loads=[load(place) for place in fleet.places],
        clock=clock,
        send=measured_send,
    )
