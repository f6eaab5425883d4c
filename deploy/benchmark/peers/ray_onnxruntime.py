"""Ray Serve: `@serve.batch` waits `delay_ms` for `max_batch_size` windows, in one replica behind its proxy.

One replica, because one run uses all cores; it takes as many requests as come, so that they wait in its batcher. What
its documentation has against overhead is a variable, `RAY_SERVE_THROUGHPUT_OPTIMIZED`, set by whoever starts this.
"""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request

from deploy.benchmark.peers.options import HOST, PeerOptions
from deploy.benchmark.peers.reading import QuestionReader
from deploy.benchmark.peers.window_model import WindowModel

OPTIONS = PeerOptions()
WAITING = 10_000
"""Requests at the replica at once."""


class Questions:
    """The replica."""

    def __init__(self) -> None:
        self._model, self._reader = WindowModel(OPTIONS.bundle), QuestionReader(OPTIONS.bundle)
        self._executor = ThreadPoolExecutor(1)

    @serve.batch(max_batch_size=OPTIONS.max_batch_size, batch_wait_timeout_s=OPTIONS.delay_ms / 1e3)
    async def read(self, windows: list[np.ndarray]) -> list[np.ndarray]:
        """INT64 [S] each to FP32 [S,3] each, beside the event loop that takes requests meanwhile."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._model, windows)

    async def __call__(self, request: Request) -> dict[str, Any]:
        """`POST /v1/qa`."""
        body = await request.json()
        question = await self._reader.read(body["question"], body["context"])
        return self._reader.answer(question, await asyncio.gather(*map(self.read, question.windows)))


def main() -> None:
    """Serve until a signal."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    try:
        http = {"host": HOST, "port": OPTIONS.port}
        serve.start(http_options=http, logging_config={"enable_access_log": False})
        deployed = serve.deployment(num_replicas=1, max_ongoing_requests=WAITING)(Questions)
        serve.run(deployed.bind(), route_prefix="/v1/qa", blocking=True)
    except KeyboardInterrupt:
        pass
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
