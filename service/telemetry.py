"""The gateway's metrics, as Prometheus reads them: one registry an app, base units, the prefix `trident_`."""

from __future__ import annotations

from collections.abc import Callable

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.admission import Admission
from service.batching.batcher import Batcher
from service.batching.pending import RunningBatch
from service.batching.rows import RowLane
from service.batching.tiers import Tier
from service.batching.windows import WindowLane

PREFIX = "trident"
TIME_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0),
)
ROW_BUCKETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
SHARE_BUCKETS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75)
REJECTIONS = ("queue_full", "concurrency", "peer", "body_bytes", "draining", "unavailable", "deadline")
"""Of requests to the models."""

CONNECTIONS = "connections"
"""Of connections, whose requests are not read: they are of no task and no class."""

# A creation time beside every series doubles what is scraped, and nothing here reads it.
disable_created_metrics()


class Metrics:
    """Everything that is counted and timed. Times of an answer are observed when it ends, by what kind it is."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "requests",
            "Requests to the models by the task that ran and the HTTP status; a stream that fails after its status "
            "went out counts with the status of its error, 499 is a client that left.",
            ["task", "code"],
            namespace=PREFIX,
            registry=self.registry,
        )
        self.rejected = Counter(
            "requests_rejected",
            "Requests refused for want of room, time or a model; of the reason connections: connections.",
            ["reason"],
            namespace=PREFIX,
            registry=self.registry,
        )
        for reason in (*REJECTIONS, CONNECTIONS):
            self.rejected.labels(reason)
        self.tier_requests = Counter(
            "tier_requests",
            "Requests to the models by class of service and HTTP status, as in requests_total.",
            ["tier", "code"],
            namespace=PREFIX,
            registry=self.registry,
        )
        self.tier_rejected = Counter(
            "tier_requests_rejected",
            "Requests refused for want of room, time or a model, by class of service.",
            ["tier", "reason"],
            namespace=PREFIX,
            registry=self.registry,
        )
        self.tier_latency = Histogram(
            "tier_request_latency_seconds",
            "Arrival of a request to the end of its answer, of those that succeeded, by class of service.",
            ["tier"],
            buckets=TIME_BUCKETS_S,
            namespace=PREFIX,
            registry=self.registry,
        )
        for tier in Tier:
            self.tier_latency.labels(tier.value)
            for reason in REJECTIONS:
                self.tier_rejected.labels(tier.value, reason)
        self.time_to_first_token = self._times(
            "time_to_first_token_seconds",
            "Arrival of a request to its first token at the gateway; an answer that is not streamed comes whole.",
        )
        self.inter_token_latency = self._times(
            "inter_token_latency_seconds",
            "Time between tokens: between two pieces of a stream, the mean of an answer that comes whole.",
        )
        self.e2e_latency = self._times(
            "e2e_request_latency_seconds", "Arrival of a request to the end of its answer, of those that succeeded."
        )
        self.queue_time = self._times(
            "request_queue_time_seconds", "Waiting for a batch in the gateway and for a slot in the engine."
        )
        self.prefill_time = self._times("request_prefill_time_seconds", "Encoding the source.")
        self.decode_time = self._times("request_decode_time_seconds", "Writing the answer.")
        self.prompt_tokens = self._counter("prompt_tokens", "Source tokens of requests that were answered.")
        self.generation_tokens = self._counter("generation_tokens", "Tokens that were written.")
        self.batch_size = Histogram(
            "batch_size",
            "Rows or windows sent to a model together.",
            buckets=ROW_BUCKETS,
            namespace=PREFIX,
            registry=self.registry,
        )
        self.batch_padding = Histogram(
            "batch_padding_ratio",
            "Share of a batch's source tokens that is padding.",
            buckets=SHARE_BUCKETS,
            namespace=PREFIX,
            registry=self.registry,
        )
        process = psutil.Process()
        self._gauge(
            "process_resident_memory_bytes", "Memory of the gateway's process.", lambda: process.memory_info().rss
        )
        self.registry.register(GpuMemory())

    def watch(self, lanes: Callable[[], tuple[RowLane, WindowLane]]) -> None:
        """Export how the lanes of the served bundle stand whenever somebody looks."""
        self._gauge(
            "num_requests_running",
            "Rows and windows that were sent to a model and have not been answered, or whose slots are not free yet.",
            lambda: sum(lane.batcher.running for lane in lanes()),
        )
        self._gauge(
            "num_requests_waiting",
            "Rows and windows in the gateway's queues.",
            lambda: sum(len(lane.batcher.queue) for lane in lanes()),
        )
        self._gauge(
            "kv_cache_usage_ratio",
            "Share of the engine's slots that is taken.",
            lambda: _slots_taken(lanes()[0]),
        )
        error = Gauge(
            "latency_model_error_ratio",
            "How far the predicted durations of recent batches and steps were off, as a share of what the models "
            "reported; of several places the worst.",
            ["model"],
            namespace=PREFIX,
            registry=self.registry,
        )
        for model, ratio in LATENCY_ERRORS.items():
            error.labels(model).set_function(lambda ratio=ratio: ratio(*lanes()))  # type: ignore[misc]

    def watch_requests(self, admission: Admission, text_bytes: Callable[[], int]) -> None:
        """Export what requests hold whenever somebody looks."""
        self._gauge(
            "requests_in_flight",
            "Requests to the models whose bodies have arrived and whose answers have not gone out to their ends.",
            lambda: admission.in_flight,
        )
        self._gauge(
            "body_bytes_in_flight", "Bytes of all bodies that are being read or served.", lambda: admission.body_bytes
        )
        self._gauge(
            "text_bytes_in_flight",
            "Bytes of the long texts that are being tokenised or searched.",
            text_bytes,
        )

    def count_rejected_connection(self, reason: str) -> None:
        """A connection was refused."""
        self.rejected.labels(reason).inc()

    def observe_batch(self, batch: RunningBatch) -> None:
        """A batch goes to a model."""
        tokens = sum(request.tokens for request in batch.requests)
        self.batch_size.observe(len(batch.requests))
        self.batch_padding.observe(1 - tokens / (len(batch.requests) * batch.longest))

    def _times(self, name: str, documentation: str) -> Histogram:
        return Histogram(name, documentation, buckets=TIME_BUCKETS_S, namespace=PREFIX, registry=self.registry)

    def _counter(self, name: str, documentation: str) -> Counter:
        return Counter(name, documentation, namespace=PREFIX, registry=self.registry)

    def _gauge(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        Gauge(name, documentation, namespace=PREFIX, registry=self.registry).set_function(value)


def _slots_taken(rows: RowLane) -> float:
    stats = [load.place.stats for load in rows.batcher.loads]
    return sum(each.slots_used for each in stats) / max(1, sum(each.slots_total for each in stats))


def _worst(batcher: Batcher) -> float:
    return max(load.latency.error_ratio for load in batcher.loads)


LATENCY_ERRORS: dict[str, Callable[[RowLane, WindowLane], float]] = {
    "generator": lambda rows, _: _worst(rows.batcher),
    "generator_step": lambda rows, _: max(load.steps.error_ratio for load in rows.batcher.loads),
    "qa": lambda _, windows: _worst(windows.batcher),
}
"""Label of `latency_model_error_ratio` to the error it shows."""


class GpuMemory(Collector):
    """Memory in use on every GPU of this machine; no samples where there is none, or no NVML to ask."""

    def __init__(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:
            # No package, no driver, no GPU: an absent series says so better than a zero.
            self._nvml = None
        else:
            self._nvml = pynvml

    def collect(self) -> list[GaugeMetricFamily]:
        """One sample a GPU."""
        family = GaugeMetricFamily(
            f"{PREFIX}_gpu_memory_used_bytes", "Memory in use on each GPU of this machine.", labels=["gpu"]
        )
        if self._nvml is not None:
            for index in range(self._nvml.nvmlDeviceGetCount()):
                handle = self._nvml.nvmlDeviceGetHandleByIndex(index)
                family.add_metric([str(index)], self._nvml.nvmlDeviceGetMemoryInfo(handle).used)
        return [family]
