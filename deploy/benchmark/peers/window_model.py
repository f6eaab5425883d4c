"""The bundle's `qa` graph in ONNX Runtime, opened as Trident opens it: windows of any length run as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploy.triton.manifest import load_manifest
from deploy.triton.sessions import open_session


def pad(windows: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids INT64 [B,S], padded on the right, and lengths INT32 [B,1]."""
    lengths_B1 = np.array([[len(window)] for window in windows], np.int32)
    ids_BS = np.zeros((len(windows), int(lengths_B1.max())), np.int64)
    for row, window in zip(ids_BS, windows, strict=True):
        row[: len(window)] = window
    return ids_BS, lengths_B1


class WindowModel:
    """Tag scores of windows."""

    def __init__(self, bundle: Path, *, threads: int = 0) -> None:
        """Load the graph; `threads` is as in `open_session`. Raises BundleError where the bundle is damaged."""
        graph = bundle / load_manifest(bundle, verify=False).graph_file("qa")
        self._session = open_session(graph, threads=threads, keeps_memory=False)

    def __call__(self, windows: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Windows INT64 [S] to FP32 [S,3] each."""
        ids_BS, lengths_B1 = pad(windows)
        (emissions_BS3,) = self._session.run(["emissions"], {"input_ids": ids_BS, "lengths": lengths_B1})
        return [row[: len(window)] for row, window in zip(emissions_BS3, windows, strict=True)]
