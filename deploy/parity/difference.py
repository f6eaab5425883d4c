"""How far two graphs' outputs lie apart, in the reference's own units."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

TOLERANCES = {"fp32": 1e-3, "fp16": 2e-2, "int8": 1.0, "int4": 3.0}
"""Largest difference allowed, in standard deviations of the reference output. An extreme over millions of values: at
int8 the mean difference is about ten times smaller.

int8: on texts the shipped network's logits came to 0.34 in integers (0.15 in blocks), the random network of the tests
to more than 0.5.

int4: the shipped network's graphs came to 0.6 (routes) to 1.7 (memory) on the random rows of `feeds.TRIALS`, the
random network of the tests to 2.0, a prototype's logits to 1.05. With the nibbles of one matrix swapped it was 5.7 and
more, as for unrelated weights. The limit stands between.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """The largest distance between two versions of one output."""

    output: str
    largest: float
    """Absolute."""

    spread: float
    """Standard deviation of the reference."""

    @property
    def relative(self) -> float:
        """The largest distance in standard deviations of the reference."""
        return self.largest / max(self.spread, 1e-12)


def difference(
    output: str, reference: np.ndarray, other: np.ndarray, lengths_B: np.ndarray | None = None
) -> Difference:
    """Compare two arrays of equal shape; with lengths, [B,S,…] only before each row's length.

    Raises ValueError where the shapes differ or a value is not finite.
    """
    if reference.shape != other.shape:
        raise ValueError(f"{output} has shape {other.shape}, the reference {reference.shape}")
    if lengths_B is not None:
        inside_BS = np.arange(reference.shape[1])[None] < lengths_B[:, None]
        reference, other = reference[inside_BS], other[inside_BS]
    if not (np.isfinite(reference).all() and np.isfinite(other).all()):
        raise ValueError(f"{output} holds values that are not finite")
    largest = float(np.abs(reference - other).max()) if reference.size else 0.0
    return Difference(output=output, largest=largest, spread=float(reference.std()))


def worst(differences: Iterable[Difference]) -> Difference:
    """The one that is largest against its reference's spread."""
    return max(differences, key=lambda each: each.relative)


def check(found: Difference, tolerance: float, precision: str) -> None:
    """Raises ValueError where the difference is above the tolerance, in standard deviations."""
    if found.relative > tolerance:
        raise ValueError(
            f"{precision}: {found.output} differs by {found.largest:.4g}, {found.relative:.4g} standard deviations; "
            f"at most {tolerance:g} are allowed (--tolerance)"
        )
