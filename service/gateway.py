"""What lives as long as the process: settings, clock, metrics, the door, and the bundle that is served now."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.admission import Admission
from service.batching.clock import Clock, LoopClock
from service.prediction_metrics import PredictionMetrics
from service.served import ServedBundle, serve_bundle
from service.settings import Settings
from service.tasks.text_room import TextRoom
from service.telemetry import Metrics


@dataclass(kw_only=True, slots=True)
class Gateway:
    """Everything the endpoints call. A request keeps the bundle that was served when it came."""

    settings: Settings
    clock: Clock
    metrics: Metrics
    admission: Admission
    served: ServedBundle

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connect to the models and watch them."""
        async with self.served.running():
            yield


def build_gateway(settings: Settings) -> Gateway:
    """The parts, joined; nothing runs yet. Raises BundleError or ValueError where the bundle is damaged."""
    clock, metrics, admission = LoopClock(), Metrics(), Admission(settings.limits, settings.tiers)
    text_room = TextRoom(settings.limits.text_bytes_in_flight, clock)
    gateway = Gateway(
        settings=settings,
        clock=clock,
        metrics=metrics,
        admission=admission,
        served=serve_bundle(settings, clock, metrics, text_room),
    )
    metrics.watch(lambda: (gateway.served.rows, gateway.served.windows))
    metrics.registry.register(
        PredictionMetrics(
            lambda: {"generator": gateway.served.rows.batcher, "qa": gateway.served.windows.batcher}, clock
        )
    )
    metrics.watch_requests(admission, lambda: text_room.held_bytes)
    return gateway
