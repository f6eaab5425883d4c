"""Filters on candidates: which tokens a random draw may take, and the draw.

    scores [V] ─ TopK ─ Temperature ─ TopP ─▶ masses of the kept tokens ─ draw(uniform) ─▶ token
                        (scores become masses)

The order is transformers'. What is rounded is computed row by row, so that a row's token is the same alone and in any
batch. A new filter (min-p) is one more class here and one more line in `filters_of`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .protocol import Sampling

NUCLEUS_GUESSES = (128, 2048)
"""Tokens that mostly hold the nucleus of top-p: sorting these takes 0.03 and 0.1 ms, all 32,000 take 0.7 ms."""

NARROWEST_BLOCK = 8
"""Maxima of narrower blocks take longer than they save."""

BLOCK = 256
"""Masses summed at once while looking for the drawn token: 0.03 ms a row, one cumulated sum took 0.28 ms."""


# Not frozen: up to four are made for a row and step, and frozen ones take three times as long to make.
@dataclass(slots=True, eq=False)
class Candidates:
    """The tokens that may still be drawn."""

    values: np.ndarray
    """FP32 [C], scores, and from Temperature on masses: probabilities but for a factor."""

    highest: float
    """The largest score."""

    ids: np.ndarray | None = None
    """INT64 [C], rising; None where every token of the vocabulary is one."""

    def keep(self, indices: np.ndarray) -> Candidates:
        """Those at the given indices alone."""
        ids = indices if self.ids is None else self.ids[indices]
        return Candidates(self.values[indices], self.highest, ids)

    def draw(self, uniform: float) -> int:
        """The token at which the cumulated mass passes `uniform` (0 to 1) of the whole."""
        index = _inverse(self.values, uniform)
        return index if self.ids is None else int(self.ids[index])


class Filter(Protocol):
    """One step of the chain."""

    def narrow(self, candidates: Candidates) -> Candidates:
        """What is left, or counts otherwise."""


@dataclass(frozen=True, slots=True)
class TopK:
    """The `count` likeliest tokens."""

    count: int

    def narrow(self, candidates: Candidates) -> Candidates:
        """Those."""
        return candidates.keep(largest(candidates.values, self.count))


@dataclass(frozen=True, slots=True)
class Temperature:
    """Scores become masses, the more even the hotter."""

    degree: float

    def narrow(self, candidates: Candidates) -> Candidates:
        """The same tokens with their masses."""
        mass = np.exp((candidates.values - np.float32(candidates.highest)) / np.float32(self.degree))
        return Candidates(mass, candidates.highest, candidates.ids)


@dataclass(frozen=True, slots=True)
class TopP:
    """The smallest set of likeliest tokens that holds `share` of the mass (Holtzman et al. 2020)."""

    share: float

    def narrow(self, candidates: Candidates) -> Candidates:
        """Those."""
        return candidates.keep(_nucleus(candidates.values, self.share))


def filters_of(sampling: Sampling) -> tuple[Filter, ...]:
    """The filters that one row's sampling asks for, in their order."""
    filters: list[Filter] = []
    if sampling.top_k:
        filters.append(TopK(sampling.top_k))
    filters.append(Temperature(sampling.temperature))
    if sampling.top_p < 1.0:
        filters.append(TopP(sampling.top_p))
    return tuple(filters)


def largest(values_V: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` largest values, in the order of their ids; of equal values the lower id counts first."""
    size = len(values_V)
    width = size // (4 * count)
    candidates = np.arange(size)
    if width >= NARROWEST_BLOCK:
        # The count-th largest of the blocks' maxima is a bound that at least `count` values reach, found in a tenth
        # of the time that it takes to partition the row.
        maxima = values_V[: size - size % width].reshape(-1, width).max(axis=1)
        candidates = np.flatnonzero(values_V >= np.partition(maxima, -count)[-count])
    found = values_V[candidates]
    if len(found) <= count:
        return candidates
    edge = np.partition(found, -count)[-count]
    kept = found > edge
    kept[np.flatnonzero(found == edge)[: count - int(kept.sum())]] = True
    return candidates[kept]


def _nucleus(mass: np.ndarray, top_p: float) -> np.ndarray:
    """Indices of the smallest set of largest masses that holds `top_p` of all."""
    target = top_p * mass.sum(dtype=np.float64)
    for guess in (*NUCLEUS_GUESSES, len(mass)):
        held = mass[largest(mass, guess)] if guess < len(mass) else mass
        cumulated = np.cumsum(np.sort(held)[::-1], dtype=np.float64)
        if cumulated[-1] >= target:
            break
    size = int(np.searchsorted(cumulated, target)) + 1
    return largest(mass, min(size, len(mass)))


def _inverse(mass: np.ndarray, uniform: float) -> int:
    """The index at which the cumulated mass passes `uniform` of the whole, by blocks first."""
    blocks = np.cumsum(np.add.reduceat(mass, np.arange(0, len(mass), BLOCK), dtype=np.float64))
    point = uniform * blocks[-1]
    block = int(np.searchsorted(blocks, point, side="right"))
    before = blocks[block - 1] if block else 0.0
    cumulated = before + np.cumsum(mass[block * BLOCK : (block + 1) * BLOCK], dtype=np.float64)
    # The block's two sums may differ in their last bit: the point stays below the end, where no mass is left.
    point = min(point, np.nextafter(cumulated[-1], 0.0))
    return block * BLOCK + int(np.searchsorted(cumulated, point, side="right"))
