"""The models in this process: the engine in a thread of its own, the stateless graphs in another."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnxruntime as ort

from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings
from deploy.triton.manifest import load_manifest
from deploy.triton.protocol import BatchNews, EngineStats, FinishReason, GenerationBatch
from deploy.triton.sessions import open_session
from service.errors import InferenceFailed, Unavailable
from service.inference.protocol import ServerInfo

ENDED = "the decode loop has ended: restart the service"

News = tuple[BatchNews, EngineStats]


class LocalClient:
    """Engine and sessions behind the gateway's protocol."""

    def __init__(self, bundle: Path, settings: EngineSettings) -> None:
        self._bundle, self._settings = bundle, settings
        self._manifest = load_manifest(bundle, verify=False)
        self._sessions: dict[str, ort.InferenceSession] = {}
        self._answers: set[asyncio.Queue[News | None]] = set()
        self._ended = False
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="stateless-models")

    async def start(self) -> None:
        """Load the engine. Raises BundleError where the bundle is damaged."""
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
        """ONNX Runtime's name and version."""
        self._check_alive()
        return ServerInfo(name="onnxruntime (in process)", version=ort.__version__)

    async def infer(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a stateless graph, loaded at its first use."""
        self._check_alive()
        return await self._loop.run_in_executor(self._executor, self._run, model, inputs)

    async def generate(self, batch: GenerationBatch) -> AsyncIterator[News]:
        """Updates until every row has finished."""
        self._check_alive()
        answers: asyncio.Queue[News | None] = asyncio.Queue()

        def hand_over(news: BatchNews) -> None:
            self._loop.call_soon_threadsafe(answers.put_nowait, (news, self._engine.stats))

        try:
            self._engine.submit(batch, hand_over)
        except ValueError as error:
            raise InferenceFailed(f"the engine refused a batch: {error}") from error
        except RuntimeError as error:
            raise Unavailable(str(error)) from error
        unfinished = len(batch.rows)
        self._answers.add(answers)
        try:
            while unfinished:
                answer = await answers.get()
                if answer is None or self._engine.failure is not None:
                    raise Unavailable(ENDED)
                news, stats = answer
                unfinished -= sum(update.finish_reason is not FinishReason.RUNNING for update in news.updates)
                yield news, stats
        finally:
            self._answers.discard(answers)

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
        for news in self._answers:
            news.put_nowait(None)

    def _check_alive(self) -> None:
        if self._ended or self._engine.failure is not None:
            raise Unavailable(ENDED)

    def _run(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        try:
            if model not in self._sessions:
                path = self._bundle / self._manifest.graph_file(model)
                self._sessions[model] = open_session(path, threads=self._settings.threads, keeps_memory=False)
            session = self._sessions[model]
            names = [output.name for output in session.get_outputs()]
            return dict(zip(names, session.run(names, inputs), strict=True))
        except Exception as error:
            # ONNX Runtime's exceptions share no base class but Exception.
            raise InferenceFailed(f"{model} failed: {error}") from error
