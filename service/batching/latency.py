"""How long batches take, learnt from what the models report: what policies plan with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

from service.batching.fit import SHORTEST_S, NonNegativeFit

ERROR_WEIGHT = 0.1
"""Of a new observation in the mean of errors."""


class LatencyModel(Protocol):
    """Predicts a batch's duration, and learns from what batches took."""

    def predict_s(self, rows: int, tokens: int) -> float:
        """Seconds for a batch of `rows` whose sources, padding included, have `tokens` each."""

    def table_s(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The same for arrays of shapes that broadcast: FP64."""

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """A batch of that shape took that long."""

    @property
    def error_ratio(self) -> float:
        """How far recent predictions were off, as a share of what the batches took; 0 before the first."""


Shape = TypeVar("Shape", float, np.ndarray)


def batch_seconds(coefficients: Sequence[float], rows: Shape, tokens: Shape) -> Shape:
    """`a + b·n + c·n·S + d·n·S²` for n rows of S tokens, numbers or arrays that broadcast; a, b, c, d in seconds."""
    a, b, c, d = coefficients
    return a + rows * (b + tokens * (c + d * tokens))


class BatchTime:
    """`t(n, S) = a + b·n + c·n·S + d·n·S²` of n rows of S tokens: a call, a row, products, attention.

    No coefficient is negative, so that time grows with rows and with tokens.
    """

    START = (2e-3, 0.0, 1e-4, 0.0)
    """About what the shipped model needs on two cores."""

    def __init__(self, start: tuple[float, float, float, float] = START) -> None:
        """`start`: a, b, c, d in seconds."""
        self._fit = NonNegativeFit(start)
        self.error_ratio = 0.0
        """How far recent predictions were off, as a share of what the batches took."""

    @property
    def coefficients(self) -> tuple[float, float, float, float]:
        """a, b, c, d in seconds."""
        a, b, c, d = self._fit.coefficients
        return a, b, c, d

    def predict_s(self, rows: int, tokens: int) -> float:
        """Seconds for a batch of `rows` whose sources have `tokens` each."""
        return batch_seconds(self._fit.coefficients, rows, tokens)

    def table_s(self, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """The same for arrays of shapes that broadcast: FP64."""
        return batch_seconds(self._fit.coefficients, rows, tokens)

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """A batch of that shape took that long."""
        if not math.isfinite(seconds):
            return
        error = abs(self.predict_s(rows, tokens) - seconds) / max(seconds, SHORTEST_S)
        self.error_ratio += ERROR_WEIGHT * (error - self.error_ratio)
        self._fit.observe((1.0, rows, rows * tokens, rows * tokens * tokens), seconds)

    def state(self) -> list[list[float]]:
        """What it has learnt."""
        return self._fit.state()

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Go on from what another has learnt. Raises ValueError where it is no such thing."""
        self._fit.restore(state)
