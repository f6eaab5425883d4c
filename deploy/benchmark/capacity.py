"""What load 1.0 is: raw ONNX Runtime on all requests, in batches sorted by length, one after the other."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnxruntime as ort

from deploy.triton.manifest import load_manifest
from deploy.triton.sessions import open_session

GRAPH = "qa"


class RawModel:
    """The graph that answers questions, in this process, with as many threads as Triton gives it."""

    def __init__(self, bundle: Path) -> None:
        """Load it. Raises BundleError where the bundle is damaged."""
        manifest = load_manifest(bundle, verify=False)
        self._session: ort.InferenceSession = open_session(
            bundle / manifest.graph_file(GRAPH), threads=0, keeps_memory=False
        )
        self._generator = np.random.default_rng(0)

    def batch_s(self, tokens: np.ndarray) -> float:
        """Seconds of one batch of rows of those lengths, padded to the longest."""
        longest = int(tokens.max())
        ids_BS = self._generator.integers(100, 1000, (len(tokens), longest))
        ids_BS[np.arange(longest) >= tokens[:, None]] = 0
        feed = {"input_ids": ids_BS, "lengths": tokens.astype(np.int32)[:, None]}
        began_s = time.perf_counter()
        self._session.run(None, feed)
        return time.perf_counter() - began_s

    def shares_s(self, tokens: np.ndarray, rows: int) -> np.ndarray:
        """Each request's share of the seconds of the batch that it is in: FP64 [R]; their sum is one run of all."""
        order = np.argsort(tokens, kind="stable")
        shares_s = np.empty(len(tokens))
        for first in range(0, len(order), rows):
            batch = order[first : first + rows]
            shares_s[batch] = self.batch_s(tokens[batch]) / len(batch)
        return shares_s
