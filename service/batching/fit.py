"""A sum of features with coefficients that are never negative, fitted as observations come.

Least squares with forgetting, on relative errors: a batch of 10 ms tells as much as one of 3 s. What is kept are the
two sums of the normal equations, so that an update costs microseconds and no coefficient falls below zero (coordinate
by coordinate, each of which has a closed form: Lawson and Hanson, "Solving Least Squares Problems", ch. 23). Where
observations say nothing about a direction, the last coefficients stand: shapes that are all alike leave the others'
predictions as they were.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import mul

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
    """Seconds as a sum of features times coefficients. Plain numbers: a call of numpy costs more than four of them."""

    __slots__ = ("_products", "_targets", "coefficients")

    def __init__(self, start: Sequence[float]) -> None:
        """`start`: coefficients before the first observation."""
        self.coefficients = list(start)
        self._products = [[0.0] * len(start) for _ in start]
        self._targets = [0.0] * len(start)

    def predict(self, features: Sequence[float]) -> float:
        """Seconds of something of these features."""
        return sum(map(mul, features, self.coefficients))

    def observe(self, features: Sequence[float], seconds: float) -> None:
        """Something of these features took that long."""
        predicted = max(self.predict(features), SHORTEST_S)
        seconds = min(max(seconds, predicted / FURTHEST, SHORTEST_S), predicted * FURTHEST)
        relative = [feature / seconds for feature in features]
        for value, products in zip(relative, self._products, strict=True):
            products[:] = [FORGETTING * old + value * other for old, other in zip(products, relative, strict=True)]
        self._targets = [FORGETTING * old + value for old, value in zip(self._targets, relative, strict=True)]
        self._solve(relative)

    def state(self) -> list[list[float]]:
        """Everything it has learnt, as numbers: the coefficients, the targets, the products' rows."""
        return [list(self.coefficients), list(self._targets), *(list(row) for row in self._products)]

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Go on from `state`. Raises ValueError where it is not one of a fit of this size."""
        size = len(self.coefficients)
        numbers = [[float(value) for value in row] for row in state]
        if len(numbers) != size + 2 or any(len(row) != size for row in numbers):
            raise ValueError(f"a fit of {size} coefficients has {size + 2} rows of as many numbers")
        if not all(math.isfinite(value) for row in numbers for value in row) or min(numbers[0]) < 0:
            raise ValueError("a fit's numbers are finite, and its coefficients not negative")
        self.coefficients, self._targets, *self._products = numbers

    def _solve(self, scale: list[float]) -> None:
        """Coordinates in turn, each at its best where it may not be negative."""
        # A coefficient's weight of its own is measured in what an observation weighs.
        least = 1e-12 * sum(map(mul, scale, scale))
        standing = [STANDING * max(value * value, least) for value in scale]
        products, found = self._products, self.coefficients
        wanted = [target + own * last for target, own, last in zip(self._targets, standing, found, strict=True)]
        for _ in range(SWEEPS):
            for index, row in enumerate(products):
                own = row[index]
                rest = sum(map(mul, row, found)) - own * found[index]
                found[index] = max(0.0, (wanted[index] - rest) / (own + standing[index]))
