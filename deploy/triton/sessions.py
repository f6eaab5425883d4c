"""ONNX Runtime sessions, all opened the same way."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import onnxruntime as ort

from .manifest import BundleError, fix_for

NUMPY_TYPES: dict[str, np.dtype] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int64)": np.dtype(np.int64),
}
"""ONNX Runtime's names of the types that the bundle's graphs take and give."""


def open_session(
    path: Path,
    *,
    threads: int = 0,
    keeps_memory: bool = True,
    profile: Path | None = None,
    device: str = "cpu",
    captures: bool = False,
) -> ort.InferenceSession:
    """Load a graph.

    Args:
        path: the graph; its weights lie beside it.
        threads: threads of one operator; 0 is one for each physical core.
        keeps_memory: hold on to the memory of the largest run. Right for steps of one size; graphs that see sources
            of any length would stay as large as the largest batch they ever saw.
        profile: time every node, into a file whose name begins so; `end_profiling()` names it.
        device: `cpu`, or `cuda`: the first CUDA device, but for nodes that it has no kernels for.
        captures: on a CUDA device, capture the launches of a run into a CUDA graph, and replay it in runs of the same
            `gpu_graph_id`.

    Raises:
        BundleError: the graph is missing, damaged, or of an operator set that this ONNX Runtime does not know.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    options.enable_cpu_mem_arena = keeps_memory
    options.enable_mem_pattern = keeps_memory
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    if not keeps_memory:
        # Long runs, which decode steps interrupt: work is handed out in shrinking pieces, so that a thread that was
        # interrupted does not keep the others waiting for its half. Costs nothing alone (docs/decisions/0020).
        options.add_session_config_entry("session.dynamic_block_base", "4")
    # Waiting threads sleep: the gateway and the other models share the cores.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    providers: list[str | tuple[str, dict[str, str]]] = ["CPUExecutionProvider"]
    if device == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"enable_cuda_graph": str(int(captures))}))
    try:
        session = ort.InferenceSession(path, options, providers=providers)
    except Exception as error:
        # ONNX Runtime's exceptions share no base class but Exception.
        raise BundleError(f"{path} cannot be loaded ({error}): {fix_for(path)}") from error
    _give_back_memory()
    return session


def _give_back_memory() -> None:
    """Hand freed memory back to the system: what integer weights are computed from would stay with the process
    (450 MB in place of 57 after `qa` of the shipped bundle)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)
