"""How long the shipped graph takes on this machine, by shape."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deploy.triton.manifest import load_manifest
from deploy.triton.sessions import open_session

SHAPES = ((1, 32), (1, 128), (1, 512), (4, 64), (4, 256), (8, 128), (8, 384), (16, 256))
REPEATS = 3


def time_shapes(bundle: Path) -> Iterator[tuple[int, int, float]]:
    """Rows, tokens, and the median of seconds, of the graph that answers questions, after a run that is not counted.

    Raises BundleError where the bundle is damaged.
    """
    manifest = load_manifest(bundle, verify=False)
    session = open_session(bundle / manifest.graph_file("qa"), threads=0, keeps_memory=True)
    generator = np.random.default_rng(0)
    for rows, tokens in SHAPES:
        feed = {
            "input_ids": generator.integers(100, 1000, (rows, tokens)),
            "lengths": np.full((rows, 1), tokens, np.int32),
        }
        seconds = []
        for _ in range(REPEATS + 1):
            began_s = time.perf_counter()
            session.run(None, feed)
            seconds.append(time.perf_counter() - began_s)
        yield rows, tokens, statistics.median(seconds[1:])
