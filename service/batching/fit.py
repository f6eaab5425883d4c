"""A sum of features with coefficients that are never negative, fitted as observations come.

Least squares with forgetting, on relative errors: a batch of 10 ms tells as much as one of 3 s. What is kept are the
two sums of the normal equations, so that an update costs microseconds and no coefficient falls below zero (coordinate
by coordinate, each of which has a closed form: Lawson and Hanson, "Solving Least Squares Problems", ch. 23). Where
observations say nothing about a direction, the last coefficients stand: shapes that are all alike leave the others'
predictions as they were.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

FORGETTING = 0.94
"""What an observation counts for after the next one: about 17 are remembered."""

STANDING = 1e-3
"""Weight of the last coefficients, in observations."""

SWEEPS = 8
FURTHEST = 8.0
"""An observation further than this factor from what was predicted is moved there: one stall of a machine is not a new
machine, and several still are."""

SHORTEST_S = 1e-6
"""Below what anything takes: a clock that stood still divides nothing by zero."""


class NonNegativeFit:
    """Seconds as a sum of features times coefficients."""

    def __init__(self, start: Sequence[float]) -> None:
        """`start`: coefficients before the first observation."""
        self.coefficients = np.array(start, np.float64)
        self._products = np.zeros((len(start), len(start)))
        self._targets = np.zeros(len(start))

    def observe(self, features: np.ndarray, seconds: float) -> None:
        """Something of these features took that long."""
        predicted = max(float(features @ self.coefficients), SHORTEST_S)
        seconds = min(max(seconds, predicted / FURTHEST, SHORTEST_S), predicted * FURTHEST)
        relative = features / seconds
        self._products = FORGETTING * self._products + np.outer(relative, relative)
        self._targets = FORGETTING * self._targets + relative
        self._solve(relative)

    def _solve(self, scale: np.ndarray) -> None:
        """Coordinates in turn, each at its best where it may not be negative."""
        # A coefficient's weight of its own is measured in what an observation weighs.
        standing = STANDING * np.maximum(scale * scale, 1e-12 * float(scale @ scale))
        last = self.coefficients.copy()
        products, targets, found = self._products, self._targets, self.coefficients
        for _ in range(SWEEPS):
            for index in range(len(found)):
                rest = float(products[index] @ found) - products[index, index] * found[index]
                weight = products[index, index] + standing[index]
                found[index] = max(0.0, (targets[index] - rest + standing[index] * last[index]) / weight)
