"""The gateway below HTTP: bundle, models, lanes, tasks, and what watches them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

from deploy.triton.limits import EngineSettings
from deploy.triton.manifest import Manifest, load_manifest, verify_files
from deploy.triton.protocol import Task
from service.admission import Admission
from service.batching.batcher import Batcher
from service.batching.clock import Clock, LoopClock
from service.batching.latency import TokenRate
from service.batching.policies import BatchLimits, make_policy
from service.batching.queue import Pending, RequestQueue
from service.batching.rows import RowLane
from service.batching.windows import WindowLane
from service.inference.protocol import InferenceClient
from service.inference.triton import TritonClient
from service.readiness import Readiness
from service.settings import BatchingSettings, Settings
from service.tasks.parts import Parts
from service.tasks.questions import Questions
from service.tasks.routing import Routing
from service.tasks.text_room import TextRoom
from service.tasks.tokens import TextCodec
from service.tasks.writing import Writing
from service.telemetry import Metrics

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Gateway:
    """Everything the endpoints call."""

    settings: Settings
    manifest: Manifest
    client: InferenceClient
    parts: Parts
    generation: Writing
    summary: Writing
    questions: Questions
    routing: Routing
    admission: Admission
    readiness: Readiness

    @property
    def metrics(self) -> Metrics:
        """The metrics of all parts."""
        return self.parts.metrics

    async def close_lanes(self) -> None:
        """Answer whatever still waits or runs with 503."""
        await self.parts.rows.close()
        await self.parts.windows.close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Connect to the models and watch them."""
        await self.client.start()
        watcher = asyncio.create_task(self.readiness.watch(self.parts.rows))
        try:
            yield
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
            await self.close_lanes()
            await self.client.close()


def build_gateway(settings: Settings) -> Gateway:
    """Make the parts and join them; nothing runs yet.

    Raises BundleError or ValueError where the bundle is damaged.
    """
    local = settings.runtime == "local"
    manifest = load_manifest(settings.bundle, verify=local)
    if not local:
        # Triton checks the graphs that it loads; the gateway itself reads no more than this.
        verify_files(manifest, settings.bundle, [TOKENIZER_FILE])
    codec = TextCodec(settings.bundle, manifest.special_tokens)
    client = make_client(settings)
    metrics = Metrics()
    readiness = Readiness(client, manifest.special_tokens, settings.triton.timeout_s)
    knobs, clock = settings.batching, LoopClock()
    rows = RowLane(
        client, _batcher(knobs, metrics, clock, rows=knobs.batch_rows, slots=knobs.running_slots), readiness.doubt
    )
    window_rows = min(knobs.batch_rows, manifest.limits.max_batch_size)
    windows = WindowLane(
        client, _batcher(knobs, metrics, clock, rows=window_rows, slots=knobs.running_windows), readiness.doubt
    )
    metrics.watch(rows, windows)
    admission, text_room = Admission(settings.limits), TextRoom(settings.limits.text_bytes_in_flight, clock)
    metrics.watch_requests(admission, text_room)
    parts = Parts(
        rows=rows,
        windows=windows,
        codec=codec,
        text_room=text_room,
        limits=manifest.limits,
        crf=manifest.crf,
        max_beams=min(manifest.limits.max_beams, settings.local.slots) if local else manifest.limits.max_beams,
        clock=clock,
        metrics=metrics,
    )
    generation, summary = Writing(Task.GENERATION, parts), Writing(Task.SUMMARY, parts)
    questions = Questions(parts)
    return Gateway(
        settings=settings,
        manifest=manifest,
        client=client,
        parts=parts,
        generation=generation,
        summary=summary,
        questions=questions,
        routing=Routing(parts, generation, questions, summary),
        admission=admission,
        readiness=readiness,
    )


def make_client(settings: Settings) -> InferenceClient:
    """The way to the models that the settings name."""
    if settings.runtime == "triton":
        return TritonClient(settings.triton.url, settings.triton.timeout_s)
    # Only here: a gateway in front of Triton does not need ONNX Runtime.
    from service.inference.local import LocalClient

    engine = EngineSettings(slots=settings.local.slots, threads=settings.local.threads, verify=False)
    return LocalClient(settings.bundle, engine)


def _batcher(
    knobs: BatchingSettings, metrics: Metrics, clock: Clock, *, rows: int, slots: int
) -> Callable[[Callable], Batcher]:
    """A maker of batchers around a lane's `send`."""

    def make(send: Callable[[Sequence[Pending]], None]) -> Batcher:
        def measured_send(batch: Sequence[Pending]) -> None:
            metrics.observe_batch(batch)
            send(batch)

        return Batcher(
            queue=RequestQueue(knobs.queue_tokens),
            policy=make_policy(knobs.policy, knobs.max_delay_s),
            limits=BatchLimits(rows=rows, tokens=knobs.batch_tokens),
            slots=slots,
            clock=clock,
            latency=TokenRate(),
            send=measured_send,
        )

    return make
