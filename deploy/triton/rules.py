"""Rules on scores: what a row's sampling and its answer so far forbid, or make less likely, before a token is chosen.

    scores [V] ─ BannedTokens ─ RepetitionPenalty ─ NoRepeatNgram ─ MinTokens ─▶ scores [V]

The order is transformers', with one difference: the repetition penalty looks at the answer, not at the source, which an
encoder reads here. A new rule (a bias, a grammar) is one more class here and one more line in `rules_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from .protocol import Sampling


class Rule(Protocol):
    """One step of the chain."""

    def apply(self, scores_V: np.ndarray, answer: np.ndarray) -> None:
        """Change the scores of a row's next token in place, given its answer so far (INT64 [T])."""


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What holds for every row: which ids never stand in an answer, and which one ends it."""

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


@dataclass(frozen=True, slots=True)
class RepetitionPenalty:
    """Scores of tokens that the answer holds are divided by a factor, negative ones multiplied (Keskar et al. 2019)."""

    factor: float

    def apply(self, scores_V: np.ndarray, answer: np.ndarray) -> None:
        """In place."""
        if not len(answer):
            return
        seen = np.unique(answer)
        factor = np.float32(self.factor)
        scores = scores_V[seen]
        scores_V[seen] = np.where(scores < 0, scores * factor, scores / factor)


@dataclass(frozen=True, slots=True)
class NoRepeatNgram:
    """No sequence of `size` tokens occurs twice."""

    size: int

    def apply(self, scores_V: np.ndarray, answer: np.ndarray) -> None:
        """In place."""
        scores_V[repeating_tokens(answer, self.size)] = -np.inf


@dataclass(frozen=True, slots=True)
class MinTokens:
    """The answer does not end before it holds `count` tokens."""

    count: int
    end: int

    def apply(self, scores_V: np.ndarray, answer: np.ndarray) -> None:
        """In place."""
        if len(answer) < self.count:
            scores_V[self.end] = -np.inf


def rules_of(sampling: Sampling, end: int) -> tuple[Rule, ...]:
    """The rules that one row's sampling asks for, in their order."""
    rules: list[Rule] = []
    if sampling.repetition_penalty != 1.0:
        rules.append(RepetitionPenalty(sampling.repetition_penalty))
    if sampling.no_repeat_ngram:
        rules.append(NoRepeatNgram(sampling.no_repeat_ngram))
    if sampling.min_new_tokens:
        rules.append(MinTokens(sampling.min_new_tokens, end))
    return tuple(rules)


def repeating_tokens(tokens: np.ndarray, size: int) -> np.ndarray:
    """Tokens that would complete a sequence of `size` tokens which `tokens` already holds."""
    starts = len(tokens) - size + 1
    if starts < 1:
        return tokens[:0]
    same = np.ones(starts, np.bool_)
    for offset in range(size - 1):
        same &= tokens[offset : offset + starts] == tokens[starts + offset]
    return tokens[size - 1 :][same]
