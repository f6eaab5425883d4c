"""FastAPI and ONNX Runtime: a request runs alone, `concurrency` of them at a time, each on its share of the cores."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np

from deploy.benchmark.peers.front import ReadWindow, serve
from deploy.benchmark.peers.options import PeerOptions
from deploy.benchmark.peers.window_model import WindowModel


@asynccontextmanager
async def opened(options: PeerOptions) -> AsyncIterator[ReadWindow]:
    """A session, and as many threads as may use it."""
    threads = 0 if options.concurrency == 1 else max(1, (os.cpu_count() or 1) // options.concurrency)
    model, loop = WindowModel(options.bundle, threads=threads), asyncio.get_running_loop()
    with ThreadPoolExecutor(options.concurrency) as executor:

        async def read(window: np.ndarray) -> np.ndarray:
            (emissions_S3,) = await loop.run_in_executor(executor, model, [window])
            return emissions_S3

        yield read


if __name__ == "__main__":
    serve(PeerOptions(), opened(PeerOptions()))
