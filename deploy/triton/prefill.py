"""The encoder pass over sources of several lengths, and what is read straight off it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .manifest import Manifest
from .requests import LiveRow
from .sessions import open_session

LEAST_FILLED = 0.75
"""A source joins a batch whose longest is at most this much longer: padding costs as much as tokens do."""


def padded_groups(rows: Sequence[LiveRow], budget: int) -> list[list[LiveRow]]:
    """Rows of similar length together, at most `budget` tokens a group (padding included) unless one row has more."""
    groups: list[list[LiveRow]] = []
    for row in sorted(rows, key=lambda each: len(each.row.input_ids), reverse=True):
        length = len(row.row.input_ids)
        if groups:
            longest = len(groups[-1][0].row.input_ids)
            if length >= LEAST_FILLED * longest and longest * (len(groups[-1]) + 1) <= budget:
                groups[-1].append(row)
                continue
        groups.append([row])
    return groups


class Encoder:
    """The sessions `encoder` and `extractive`."""

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int) -> None:
        """Load both graphs. Raises BundleError where one is missing or cannot be loaded."""
        self._encoder, self._extractive = (
            open_session(folder / manifest.graph_file(name), threads=threads, keeps_memory=False)
            for name in ("encoder", "extractive")
        )

    def encode(self, sources: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Encode sources (INT64 [S] each) as one batch: memory FP32 [B,S,D], P(task) FP32 [B,3]."""
        lengths = np.array([len(source) for source in sources], np.int32)
        ids_BS = np.zeros((len(sources), int(lengths.max())), np.int64)
        for row, source in zip(ids_BS, sources, strict=True):
            row[: len(source)] = source
        memory_BSD, routes_B3 = self._encoder.run(
            ["memory", "task_probabilities"], {"input_ids": ids_BS, "lengths": lengths}
        )
        return memory_BSD, routes_B3

    def extract(self, memory_BSD: np.ndarray, lengths: Sequence[int]) -> list[np.ndarray]:
        """Scores of the tags O, B, I of every source token: FP32 [S,3] for each row."""
        inputs = {"memory": memory_BSD, "lengths": np.array(lengths, np.int32)}
        (emissions_BS3,) = self._extractive.run(["emissions"], inputs)
        return [emissions_S3[:length] for emissions_S3, length in zip(emissions_BS3, lengths, strict=True)]
