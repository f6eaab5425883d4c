"""What the gateway expects, and how well it has known of late, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from deploy.triton.protocol import Task
from service.batching.batcher import Batcher
from service.batching.clock import Clock
from service.batching.forecast import HORIZONS_S, LENGTH_CLASSES

PREFIX = "trident"
LENGTHS = (
    *(f"<={bound}" for bound in LENGTH_CLASSES),
    f">{LENGTH_CLASSES[-1]}",
)


class PredictionMetrics(Collector):
    """Forecasts of arrivals, bursts, and lengths of answers, looked up whenever somebody asks."""

    def __init__(self, batchers: Callable[[], dict[str, Batcher]], clock: Clock) -> None:
        self._batchers, self._clock = batchers, clock

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """One family each."""
        now_s = self._clock.now_s()
        forecasts = {model: batcher.forecast for model, batcher in self._batchers().items()}
        rates = GaugeMetricFamily(
            f"{PREFIX}_forecast_arrival_rate",
            "Requests per second that are expected over the next seconds, by task and source tokens.",
            labels=["task", "length", "horizon"],
        )
        errors = GaugeMetricFamily(
            f"{PREFIX}_forecast_error_ratio",
            "How far recent forecasts of arrivals were off, as a share of what came.",
            labels=["model", "horizon"],
        )
        bursts = GaugeMetricFamily(
            f"{PREFIX}_forecast_burst",
            "1 while more requests come than the last minute's rate explains.",
            labels=["model"],
        )
        for model, forecast in forecasts.items():
            bursts.add_metric([model], float(forecast.burst(now_s)))
            for horizon in forecast.horizons:
                errors.add_metric([model, f"{horizon.span_s:g}s"], horizon.error_ratio)
            for task, length in forecast.kinds():
                for horizon_s in HORIZONS_S:
                    rate = forecast.rate_per_s(horizon_s, now_s=now_s, task=task, length=length)
                    rates.add_metric([_name(task), LENGTHS[length], f"{horizon_s:g}s"], rate)
        within = GaugeMetricFamily(
            f"{PREFIX}_answer_length_within_ratio",
            "Share of recent answers that were no longer than the quantile predicted when they began; the quantile "
            "itself where predictions are right.",
            labels=["quantile"],
        )
        for quantile, share in self._batchers()["generator"].lengths.calibration.items():
            within.add_metric([f"{quantile:g}"], share)
        yield from (rates, errors, bursts, within)


def _name(task: Hashable) -> str:
    return task.name.lower() if isinstance(task, Task) else str(task)
