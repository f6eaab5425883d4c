"""The models in this process: the engine in a thread of its own, the stateless graphs in another."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort

from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings
from deploy.triton.manifest import bundle_digest, load_manifest
from deploy.triton.protocol import BatchNews, EngineStats, FinishReason, GenerationBatch
from deploy.triton.sessions import open_session
from service.errors import InferenceFailed, ServiceError, Unavailable
from service.inference.protocol import BundleIdentity, EngineCapacity, ModelTimes, ServerInfo

ENDED = "the decode loop has ended: restart the service"
NEVER_RAN = ModelTimes(runs=0, rows=0, seconds=0.0)

News = tuple[BatchNews, EngineStats]


class LocalClient:
    """Engine and sessions behind the gateway's protocol."""

    def __init__(self, bundle: Path, settings: EngineSettings) -> None:
        self._bundle, self._settings = bundle, settings
        self._manifest = load_manifest(bundle, verify=False)
        self._identity = BundleIdentity(name=self._manifest.name, sha256=bundle_digest(bundle))
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._times: dict[str, ModelTimes] = {}
        self._on_lost: Callable[[ServiceError], None] = lambda _: None
        self._answers: set[asyncio.Queue[News | None]] = set()
        self._ended = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="stateless-models")

    async def start(self, on_lost: Callable[[ServiceError], None] | None = None) -> None:
        """Load the engine. Raises BundleError where the bundle is damaged."""
        self._on_lost = on_lost or self._on_lost
        self._loop = asyncio.get_running_loop()
        self._engine = await asyncio.to_thread(Engine, self._bundle, self._settings)
        self._thread = threading.Thread(target=self._decode, name="decode-loop", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """End all rows and join the threads."""
        self._engine.close()
        await asyncio.to_thread(self._thread.join)
        await asyncio.to_thread(self._executor.shutdown)

    async def server(self) -> ServerInfo:
        """ONNX Runtime's name and version, and the engine's own limits."""
        self._check_alive()
        limits, settings = self._engine.limits, self._engine.settings
        capacity = EngineCapacity(
            slots=settings.slots,
            prefill_tokens=settings.prefill_tokens,
            max_source_tokens=limits.max_source_tokens,
            max_target_tokens=limits.max_target_tokens,
        )
        return ServerInfo(
            name="onnxruntime (in process)", version=ort.__version__, bundle=self._identity, engine=capacity
        )

    async def infer(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a stateless graph, loaded at its first use.

        Where it is cancelled, it ends when the run has ended: until then the thread is taken.
        """
        self._check_alive()
        options = ort.RunOptions()
        job = self._executor.submit(self._run, model, inputs, options)
        running = asyncio.wrap_future(job)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            if not job.cancel():
                options.terminate = True
                await asyncio.gather(running, return_exceptions=True)
            raise

    async def times(self, model: str) -> ModelTimes:
        """What a stateless graph has run."""
        return self._times.get(model, NEVER_RAN)

    async def generate(self, batch: GenerationBatch) -> AsyncIterator[News]:
        """News until every row has finished."""
        self._check_alive()
        news: asyncio.Queue[News | None] = asyncio.Queue()

        def hand_over(told: BatchNews) -> None:
            self._loop.call_soon_threadsafe(news.put_nowait, (told, self._engine.stats))

        try:
            self._engine.submit(batch, hand_over)
        except ValueError as error:
            raise InferenceFailed(f"the engine refused a batch: {error}") from error
        except RuntimeError as error:
            raise Unavailable(str(error)) from error
        unfinished = len(batch.rows)
        self._answers.add(news)
        try:
            while unfinished:
                answer = await news.get()
                if answer is None or self._engine.failure is not None:
                    raise Unavailable(ENDED)
                unfinished -= sum(update.finish_reason is not FinishReason.RUNNING for update in answer[0].updates)
                yield answer
        finally:
            self._answers.discard(news)

    async def cancel(self, row_ids: Iterable[int]) -> None:
        """End rows."""
        self._engine.cancel(row_ids)

    async def stats(self) -> EngineStats:
        """Occupancy of the engine."""
        return self._engine.stats

    def _decode(self) -> None:
        """The decode loop. Whoever still waits for it when it ends, waits in vain and is told."""
        try:
            self._engine.run()
        finally:
            self._loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        self._ended = True
        self._on_lost(Unavailable(ENDED))
        for news in self._answers:
            news.put_nowait(None)

    def _check_alive(self) -> None:
        if self._ended or self._engine.failure is not None:
            raise Unavailable(ENDED)

    def _run(self, model: str, inputs: dict[str, np.ndarray], options: ort.RunOptions) -> dict[str, np.ndarray]:
        try:
            if model not in self._sessions:
                path = self._bundle / self._manifest.graph_file(model)
                self._sessions[model] = open_session(path, threads=self._settings.threads, keeps_memory=False)
            session = self._sessions[model]
            names = [output.name for output in session.get_outputs()]
            started_s = time.perf_counter()
            outputs = dict(zip(names, session.run(names, inputs, options), strict=True))
            before = self._times.get(model, NEVER_RAN)
            self._times[model] = ModelTimes(
                runs=before.runs + 1,
                rows=before.rows + len(inputs["input_ids"]),
                seconds=before.seconds + time.perf_counter() - started_s,
            )
            return outputs
        except Exception as error:
            # ONNX Runtime's exceptions share no base class but Exception.
            raise InferenceFailed(f"{model} failed: {error}") from error
