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

NUCLEUS_GUESSES = (128, 2048)
"""Tokens that mostly hold the nucleus of top-p: sorting these takes 0.03 and 0.1 ms, all 32,000 take 0.7 ms."""

NARROWEST_BLOCK = 8
"""Maxima of narrower blocks take longer than they save."""

BLOCK = 256
"""Masses summed at once while looking for the drawn token: 0.03 ms a row, one cumulated sum took 0.28 ms."""

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


def _draw(scores_V: np.ndarray, highest: float, sampling: Sampling, uniform: float) -> int:
    ids, mass = None, scores_V
    if sampling.top_k:
        ids = largest(scores_V, sampling.top_k)
        mass = scores_V[ids]
    mass = np.exp((mass - np.float32(highest)) / np.float32(sampling.temperature))
    if sampling.top_p < 1.0:
        nucleus = _nucleus(mass, sampling.top_p)
        ids, mass = nucleus if ids is None else ids[nucleus], mass[nucleus]
    chosen = _inverse(mass, uniform)
    return chosen if ids is None else int(ids[chosen])


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
