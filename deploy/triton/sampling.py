"""How a row's next token is chosen from its scores.

    scores [V] ─ rules: no special tokens, no early end, penalties ─┬─ temperature 0: argmax
                                                                    └─ temperature, top-k, top-p, one uniform number
                                                                       from Philox(seed), inverse of the cumulated
                                                                       probabilities

The order is transformers' (penalties, temperature, top-k, top-p), with one difference: the repetition penalty looks at
the answer, not at the source, which an encoder reads here. What is rounded is computed row by row on [V], so that a
row's token is the same alone and in any batch; only comparisons run over all rows at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from .protocol import FinishReason, Sampling

COLDEST = 1e-5
"""Temperatures below it are greedy: scores divided by less overflow."""

FIRST_GUESS = 128
"""Tokens that usually hold the nucleus of top-p; more are sorted only where they do not."""

NO_TOKEN = -1
"""Chosen where no token has a finite score."""


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Which ids never stand in an answer, and which one ends it."""

    end: int
    banned: np.ndarray
    """INT64, special tokens other than `end`."""

    @classmethod
    def of(cls, special_tokens: Sequence[int], end: int) -> TokenRules:
        """Rules for a vocabulary with these special ids."""
        return cls(end=end, banned=np.array(sorted(set(special_tokens) - {end}), np.int64))

    def apply(self, scores_NV: np.ndarray) -> None:
        """Take the banned tokens out of every row, in place."""
        scores_NV[:, self.banned] = -np.inf


@dataclass(slots=True, eq=False)
class Sampler:
    """One row's choice of tokens."""

    sampling: Sampling
    rules: TokenRules
    tokens: list[int] = field(default_factory=list)
    """The answer so far, without the end."""

    _random: np.random.Generator = field(init=False, repr=False)
    _adjusts: bool = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # One draw a token: the step is the generator's position.
        self._random = np.random.Generator(np.random.Philox(key=self.sampling.seed))
        self._adjusts = (
            self.sampling.repetition_penalty != 1.0
            or self.sampling.no_repeat_ngram > 0
            or self.sampling.min_new_tokens > 0
        )

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.sampling.temperature < COLDEST

    def adjust(self, scores_V: np.ndarray) -> None:
        """Apply this row's penalties and bans, in place."""
        if self._adjusts:
            adjust_scores(scores_V, np.array(self.tokens, np.int64), self.sampling, self.rules.end)

    def draw(self, scores_V: np.ndarray) -> int:
        """A random token, or NO_TOKEN."""
        uniform = self._random.random()
        highest = scores_V.max()
        if not np.isfinite(highest):
            return NO_TOKEN
        return _draw(scores_V, float(highest), self.sampling, uniform)

    def accept(self, token: int) -> FinishReason:
        """Take note of the chosen token."""
        if token == NO_TOKEN:
            return FinishReason.ERROR
        if token == self.rules.end:
            return FinishReason.STOP
        self.tokens.append(token)
        return FinishReason.LENGTH if len(self.tokens) == self.sampling.max_new_tokens else FinishReason.RUNNING


def choose_tokens(scores_NV: np.ndarray, samplers: Sequence[Sampler | None]) -> np.ndarray:
    """Next tokens, INT64 [N]; NO_TOKEN where a row has no finite score.

    Args:
        scores_NV: FP32, without banned tokens; changed in place by the rows' penalties.
        samplers: one a row; None where something else chooses, whose token here means nothing.
    """
    for scores_V, sampler in zip(scores_NV, samplers, strict=True):
        if sampler is not None:
            sampler.adjust(scores_V)
    if any(sampler is not None and sampler.greedy for sampler in samplers):
        tokens_N = scores_NV.argmax(axis=1)
        best_N = np.take_along_axis(scores_NV, tokens_N[:, None], axis=1)[:, 0]
        tokens_N[~np.isfinite(best_N)] = NO_TOKEN
    else:
        tokens_N = np.full(len(samplers), NO_TOKEN, np.int64)
    for index, sampler in enumerate(samplers):
        if sampler is not None and not sampler.greedy:
            tokens_N[index] = sampler.draw(scores_NV[index])
    return tokens_N


def adjust_scores(scores_V: np.ndarray, tokens: np.ndarray, sampling: Sampling, end: int) -> None:
    """Penalties and bans that depend on the answer so far (INT64 [T]), in place."""
    if sampling.repetition_penalty != 1.0 and len(tokens):
        seen = np.unique(tokens)
        penalty = np.float32(sampling.repetition_penalty)
        scores = scores_V[seen]
        scores_V[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
    if sampling.no_repeat_ngram:
        scores_V[repeating_tokens(tokens, sampling.no_repeat_ngram)] = -np.inf
    if len(tokens) < sampling.min_new_tokens:
        scores_V[end] = -np.inf


def repeating_tokens(tokens: np.ndarray, size: int) -> np.ndarray:
    """Tokens that would complete a sequence of `size` tokens which `tokens` already holds."""
    starts = len(tokens) - size + 1
    if starts < 1:
        return tokens[:0]
    same = np.ones(starts, np.bool_)
    for offset in range(size - 1):
        same &= tokens[offset : offset + starts] == tokens[starts + offset]
    return tokens[size - 1 :][same]


def likeliest(scores_V: np.ndarray, count: int) -> np.ndarray:
    """Ids of the `count` highest scores, highest first; of equal scores the lower id first."""
    size = len(scores_V)
    width = size // (4 * count)
    if width < 2:
        candidates = np.arange(size)
    else:
        # The count-th highest of the blocks' maxima is a bound that at least `count` scores reach: two passes over
        # the row and a sort of what is left, in place of a sort of the row.
        whole = size - size % width
        maxima = scores_V[:whole].reshape(-1, width).max(axis=1)
        candidates = np.flatnonzero(scores_V >= np.partition(maxima, -count)[-count])
    return candidates[np.argsort(-scores_V[candidates], kind="stable")[:count]]


def _draw(scores_V: np.ndarray, highest: float, sampling: Sampling, uniform: float) -> int:
    if sampling.top_k:
        ids = likeliest(scores_V, min(sampling.top_k, len(scores_V)))
        mass = _weights(scores_V[ids], highest, sampling.temperature).astype(np.float64)
        if sampling.top_p < 1.0:
            mass = mass[: _nucleus_size(mass, sampling.top_p * mass.sum())]
        return int(ids[_inverse(mass, uniform)])
    weights_V = _weights(scores_V, highest, sampling.temperature)
    if sampling.top_p < 1.0:
        ids, mass = _nucleus(scores_V, weights_V, sampling.top_p)
        return int(ids[_inverse(mass, uniform)])
    return _inverse(weights_V, uniform)


def _weights(scores: np.ndarray, highest: float, temperature: float) -> np.ndarray:
    return np.exp((scores - np.float32(highest)) / np.float32(temperature))


def _nucleus(scores_V: np.ndarray, weights_V: np.ndarray, top_p: float) -> tuple[np.ndarray, np.ndarray]:
    """The smallest set of likeliest tokens that holds `top_p` of the mass: ids, likeliest first, and their mass."""
    total = weights_V.sum(dtype=np.float64)
    target = top_p * total
    ids = likeliest(scores_V, min(FIRST_GUESS, len(scores_V)))
    mass = weights_V[ids].astype(np.float64)
    if mass.sum() < target:
        # Tokens below this weight hold less than 1 - p together, so the nucleus lies above; half, for rounding.
        floor = 0.5 * (total - target) / len(weights_V)
        kept = np.flatnonzero(weights_V >= floor)
        ids = kept[np.argsort(-scores_V[kept], kind="stable")]
        mass = weights_V[ids].astype(np.float64)
    size = _nucleus_size(mass, target)
    return ids[:size], mass[:size]


def _nucleus_size(mass: np.ndarray, target: float) -> int:
    """How many of the likeliest tokens it takes to reach `target`; the one that reaches it included."""
    return min(int(np.searchsorted(np.cumsum(mass), target)) + 1, len(mass))


def _inverse(mass: np.ndarray, uniform: float) -> int:
    cumulated = np.cumsum(mass, dtype=np.float64)
    return int(np.searchsorted(cumulated, uniform * cumulated[-1], side="right"))
