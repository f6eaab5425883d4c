"""BentoML: one service reads and answers, and asks another, whose batches adapt to load, for tag scores.

Its documentation composes them so. The dispatcher fits how long batches take, waits as long as that pays, and refuses
what waited for longer than `latency_ms`.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import bentoml

from deploy.benchmark.peers.options import HOST, PeerOptions
from deploy.benchmark.peers.reading import QuestionReader
from deploy.benchmark.peers.window_model import WindowModel

OPTIONS = PeerOptions()
TRAFFIC = {"timeout": 600}
LOGGING = {"access": {"enabled": False}}


@bentoml.service(workers=1, traffic=TRAFFIC, logging=LOGGING)
class Windows:
    """The model, in a process of its own."""

    def __init__(self) -> None:
        self._model = WindowModel(OPTIONS.bundle)

    @bentoml.api(batchable=True, max_batch_size=OPTIONS.max_batch_size, max_latency_ms=round(OPTIONS.latency_ms))
    def read(self, windows: list[Any]) -> list[Any]:
        """INT64 [S] each to FP32 [S,3] each."""
        return self._model(windows)


@bentoml.service(workers=1, traffic=TRAFFIC, logging=LOGGING)
class Questions:
    """What is reached over HTTP."""

    windows = bentoml.depends(Windows)

    def __init__(self) -> None:
        self._reader = QuestionReader(OPTIONS.bundle)

    @bentoml.api(route="/v1/qa")
    async def answer(self, question: str, context: str) -> dict[str, Any]:
        """`POST /v1/qa`."""
        asked = await self._reader.read(question, context)
        return self._reader.answer(asked, await self.windows.to_async.read(asked.windows))


def main() -> None:
    """Become BentoML's own command."""
    where = ["--host", HOST, "--port", str(OPTIONS.port)]
    # Its workers import the service by this name.
    service = "deploy.benchmark.peers.bentoml_onnxruntime:Questions"
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", "serve", service, *where])


if __name__ == "__main__":
    main()
