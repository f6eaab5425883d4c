"""What batches cost on a machine that is not there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.batching.latency import batch_seconds


@dataclass(frozen=True, slots=True)
class Costs:
    """`a + b·n + c·n·S + d·n·S²` seconds for n rows of S tokens. Also a latency model that is never wrong."""

    a: float
    b: float
    c: float
    d: float
    error_ratio: float = 0.0

    @property
    def coefficients(self) -> tuple[float, float, float, float]:
        """a, b, c, d in seconds."""
        return self.a, self.b, self.c, self.d

    def predict_s(self, rows: int, tokens: int) -> float:
        """Seconds of a batch."""
        return batch_seconds(self.coefficients, rows, tokens)

    def table_s(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The same for arrays of shapes that broadcast: FP64."""
        return batch_seconds(self.coefficients, rows, tokens)

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """There is nothing to learn."""

    def times(self, factor: float) -> Costs:
        """The same machine, so many times as slow."""
        return Costs(*(each * factor for each in self.coefficients))


NAMED = {"cpu": Costs(8e-3, 0.0, 0.18e-3, 8e-8), "gpu": Costs(6e-3, 0.0, 1.2e-6, 1e-9)}
"""A two-core server, and a data-centre card, with a network of the shipped one's size."""
