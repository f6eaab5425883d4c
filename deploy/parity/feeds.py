"""Random inputs for any graph of the catalogue, and how long a run takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnxruntime as ort

from deploy.triton.sessions import NUMPY_TYPES

FIRST_TEXT_TOKEN = 16
PAD = 0
CACHE_POSITIONS = {"max_target": 64, "max_source": 128}
TOTALS = {f"total_{each}": np.array(CACHE_POSITIONS[f"max_{each}"]) for each in ("target", "source")}
"""What a graph is told that does not look for its longest row."""

TRIALS = ((1,), (2, 17), (40, 3, 130), (161,) * 2)
"""Row lengths of the batches on which two versions of a network are compared: single tokens, mixed rows, and rows
beyond a block and its halo."""

TIMED = (128,)
"""Row lengths of the batch that is timed."""


def random_rows(vocabulary: int, lengths: Sequence[int], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows of text tokens, right-padded: INT64 [B,S] and their lengths INT32 [B]."""
    random = np.random.default_rng(seed)
    ids_BS = np.full((len(lengths), max(lengths)), PAD, np.int64)
    for row, length in enumerate(lengths):
        ids_BS[row, :length] = random.integers(FIRST_TEXT_TOKEN, vocabulary, length)
    return ids_BS, np.array(lengths, np.int32)


def random_feeds(
    session: ort.InferenceSession, vocabulary: int, lengths: Sequence[int], seed: int = 0
) -> dict[str, np.ndarray]:
    """Inputs of the right types and shapes for a graph, one row a length.

    Raises ValueError for an input that no graph of the catalogue has.
    """
    random = np.random.default_rng(seed)
    ids_BS, lengths_B = random_rows(vocabulary, lengths, seed)
    sizes = {"batch": len(lengths), "source": ids_BS.shape[1], **CACHE_POSITIONS}
    given = {
        "input_ids": ids_BS,
        "source_lengths": np.minimum(lengths_B, CACHE_POSITIONS["max_source"]),
        "target_lengths": np.minimum(lengths_B, CACHE_POSITIONS["max_target"]) - 1,
        "lengths": lengths_B,
        **TOTALS,
    }
    feeds: dict[str, np.ndarray] = {}
    for each in session.get_inputs():
        shape = [sizes.get(size, size) for size in each.shape]
        kind = NUMPY_TYPES.get(each.type)
        if kind is None or not all(isinstance(size, int) for size in shape):
            raise ValueError(f"input {each.name} is {each.type} {each.shape}: not a graph of this model")
        if each.name in given:
            feeds[each.name] = given[each.name].reshape(shape).astype(kind)
        elif np.issubdtype(kind, np.floating):
            feeds[each.name] = random.standard_normal(shape, dtype=np.float32).astype(kind)
        else:
            feeds[each.name] = random.integers(FIRST_TEXT_TOKEN, vocabulary, shape).astype(kind)
    return feeds


def typed(session: ort.InferenceSession, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same inputs as the graph takes them in another precision: in its types, with the totals it asks for."""
    kinds = {each.name: NUMPY_TYPES[each.type] for each in session.get_inputs()}
    return {name: {**TOTALS, **feeds}[name].astype(kind, copy=False) for name, kind in kinds.items()}


def median_ms(run: Callable[[], object], repeats: int = 5) -> float:
    """Median wall time of a call in milliseconds, after one call to warm up."""
    run()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3
