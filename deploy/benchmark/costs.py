"""How long the shipped graph takes on this machine, by shape."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import numpy as np

from deploy.benchmark.capacity import RawModel

SHAPES = ((1, 32), (1, 128), (1, 512), (4, 64), (4, 256), (8, 128), (8, 384), (16, 256))
WINDOW_SHAPES = (
    *((1, 16), (1, 64), (1, 128), (1, 256), (1, 384), (2, 128)),
    *((2, 384), (4, 64), (4, 256), (8, 32), (8, 128)),
)
"""Of batches that the gateway makes of questions."""

REPEATS = 3


def time_shapes(model: RawModel, shapes: Sequence[tuple[int, int]] = SHAPES) -> Iterator[tuple[int, int, float]]:
    """Rows, tokens, and the median of seconds, after a run that is not counted."""
    for rows, tokens in shapes:
        seconds = [model.batch_s(np.full(rows, tokens)) for _ in range(REPEATS + 1)]
        yield rows, tokens, statistics.median(seconds[1:])
