"""The encoder pass over sources of several lengths, and what is read straight off it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from .manifest import Manifest
from .protocol import Source
from .sessions import open_session


class Encoder:
    """The sessions `encoder` and `extractive`."""

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int) -> None:
        """Load both graphs. Raises BundleError where one is missing or cannot be loaded."""
        self._encoder, self._extractive = (
            open_session(folder / manifest.graph_file(name), threads=threads, keeps_memory=False)
            for name in ("encoder", "extractive")
        )
        self._options = ort.RunOptions()
        """Of the latest run."""

    def encode(self, sources: Sequence[Source]) -> tuple[np.ndarray, np.ndarray]:
        """Encode sources as one batch: memory [B,S,D], P(task) FP32 [B,3]."""
        self._options = ort.RunOptions()
        outputs = ["memory", "task_probabilities"]
        memory_BSD, routes_B3 = self._encoder.run(outputs, encoder_feeds(sources), self._options)
        return memory_BSD, routes_B3

    def positions(self, memory_BSD: np.ndarray) -> int:
        """What each source was padded to."""
        return memory_BSD.shape[1]

    def select(self, memory_BSD: np.ndarray, indices: Sequence[int]) -> np.ndarray:
        """The memory of the sources at some indices (rising), copied only where that are not all."""
        return memory_BSD if len(indices) == len(memory_BSD) else memory_BSD[indices]

    def interrupt(self) -> None:
        """Let the run under way fail at its next operator; any thread may call this."""
        self._options.terminate = True

    def extract(self, memory_BSD: np.ndarray, sources: Sequence[Source]) -> list[np.ndarray]:
        """Scores of the tags O, B, I of every source position: FP32 [S,3] for each row."""
        lengths = np.array([source.cost for source in sources], np.int32)
        (emissions_BS3,) = self._extractive.run(["emissions"], {"memory": memory_BSD, "lengths": lengths})
        return [emissions_S3[:length] for emissions_S3, length in zip(emissions_BS3, lengths, strict=True)]


def encoder_feeds(sources: Sequence[Source]) -> dict[str, np.ndarray]:
    """Inputs of the encoder's graph: sources as one batch, padded to the longest."""
    lengths = np.array([source.cost for source in sources], np.int32)
    ids_BS = np.zeros((len(sources), int(lengths.max())), np.int64)
    for row, source in zip(ids_BS, sources, strict=True):
        row[: source.cost] = source.ids
    return {"input_ids": ids_BS, "lengths": lengths}
