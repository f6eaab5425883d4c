"""FastAPI and the network itself: PyTorch, eager, float32, one request after another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import numpy as np

from deploy.benchmark.peers.front import ReadWindow, serve
from deploy.benchmark.peers.options import PeerOptions
from deploy.benchmark.peers.window_model import pad
from deploy.bundle.checkpoints import load_bundle_model
from deploy.parity.torch_runner import TorchRunner


@asynccontextmanager
async def opened(options: PeerOptions) -> AsyncIterator[ReadWindow]:
    """The bundle's weights, dequantised, in the network they were made with."""
    network, loop = TorchRunner(load_bundle_model(options.bundle)), asyncio.get_running_loop()

    def run(window: np.ndarray) -> np.ndarray:
        ids_1S, lengths_11 = pad([window])
        return network.emissions(ids_1S, lengths_11[:, 0])[0]

    with ThreadPoolExecutor(1) as executor:

        async def read(window: np.ndarray) -> np.ndarray:
            return await loop.run_in_executor(executor, run, window)

        yield read


if __name__ == "__main__":
    serve(PeerOptions(), opened(PeerOptions()))
