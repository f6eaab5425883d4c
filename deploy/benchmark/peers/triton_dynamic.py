"""Triton's own dynamic batcher: a FastAPI without batching sends it every window as a request of its own.

The same embedded server, Python backend, engine code and gRPC as Trident's. Its batcher joins requests of one shape
only, unless a model takes ragged batches; `ragged_model.py` does, as NVIDIA's documentation has it for such inputs.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import tritonclient.grpc.aio as grpc
from google.protobuf import text_format
from tritonclient.grpc import InferInput, model_config_pb2

from deploy.benchmark.peers.front import ReadWindow, serve
from deploy.benchmark.peers.options import PeerOptions
from deploy.repository.build import build_repository
from deploy.repository.profiles import Backend, Profile
from deploy.server.installation import find_installation
from deploy.server.launcher import LaunchPlan
from deploy.server.supervisor import Supervisor

MODEL = "qa"
START_TIMEOUT_S = 120.0


def write_repository(options: PeerOptions, folder: Path) -> None:
    """Trident's repository, of which only `qa` stays, with the batcher's settings swept and lengths mixed."""
    profile = Profile(name="peer", batch_delay_us=round(options.delay_ms * 1e3), preferred_batch_sizes=())
    built = build_repository(options.bundle, folder, backend=Backend.PYTHON, profile=profile)
    for name in set(built.models) - {MODEL}:
        shutil.rmtree(folder / name)
    path = folder / MODEL / "config.pbtxt"
    config = text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    config.max_batch_size = options.max_batch_size
    for tensor in config.input:
        tensor.allow_ragged_batch = True
    path.write_text(text_format.MessageToString(config), encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name("ragged_model.py"), folder / MODEL / "1" / "model.py")


@asynccontextmanager
async def opened(options: PeerOptions) -> AsyncIterator[ReadWindow]:
    """A Triton of its own, and a client."""
    with tempfile.TemporaryDirectory(prefix="peer-triton-") as name:
        repository = Path(name) / "repository"
        write_repository(options, repository)
        plan = LaunchPlan.temporary(find_installation(), repository)
        with Supervisor(plan, start_timeout_s=START_TIMEOUT_S) as server:
            server.wait_until_ready()
            async with grpc.InferenceServerClient(plan.url) as client:

                async def read(window: np.ndarray) -> np.ndarray:
                    ids, lengths = (
                        InferInput("input_ids", [1, len(window)], "INT64"),
                        InferInput("lengths", [1, 1], "INT32"),
                    )
                    ids.set_data_from_numpy(window[None])
                    lengths.set_data_from_numpy(np.array([[len(window)]], np.int32))
                    result = await client.infer(MODEL, [ids, lengths])
                    return result.as_numpy("emissions")[0]

                yield read


if __name__ == "__main__":
    serve(PeerOptions(), opened(PeerOptions()))
