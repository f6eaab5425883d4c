"""How a row's next token is chosen from its scores.

    scores [V] ─ rules.py: no special tokens, penalties, no early end ─┬─ temperature 0: argmax
                                                                       └─ candidates.py: top-k, temperature, top-p,
                                                                          one uniform number from Philox(seed)

What is rounded is computed row by row on [V], so that a row's token is the same alone and in any batch; only
comparisons run over all rows at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .candidates import Candidates, Filter, filters_of, largest
from .protocol import FinishReason, Sampling
from .rules import Rule, TokenRules, rules_of

COLDEST = 1e-5
"""Temperatures below it are greedy: scores divided by less overflow."""

NO_TOKEN = -1
"""Chosen where no token has a finite score."""


@dataclass(slots=True, eq=False)
class Sampler:
    """One row's choice of tokens."""

    sampling: Sampling
    rules: TokenRules
    tokens: list[int] = field(default_factory=list)
    """The answer so far, without the end."""

    alternatives: int | None = None
    """Log-probabilities are told of the chosen token and of so many likeliest ones; None: of none."""

    _chain: tuple[Rule, ...] = field(init=False, repr=False)
    _filters: tuple[Filter, ...] = field(init=False, repr=False)
    _random: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._chain = rules_of(self.sampling, self.rules.end)
        self._filters = () if self.greedy else filters_of(self.sampling)
        # One draw a token: the step is the generator's position.
        self._random = np.random.Generator(np.random.Philox(key=self.sampling.seed))

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.sampling.temperature < COLDEST

    def adjust(self, scores_V: np.ndarray) -> None:
        """Apply this row's penalties and bans, in place."""
        if self._chain:
            answer = np.array(self.tokens, np.int64)
            for rule in self._chain:
                rule.apply(scores_V, answer)

    def draw(self, scores_V: np.ndarray) -> int:
        """A random token, or NO_TOKEN."""
        uniform = self._random.random()
        highest = scores_V.max()
        if not np.isfinite(highest):
            return NO_TOKEN
        candidates = Candidates(scores_V, float(highest))
        for each in self._filters:
            candidates = each.narrow(candidates)
        return candidates.draw(uniform)

    def accept(self, token: int) -> FinishReason:
        """Take note of the chosen token."""
        if token == NO_TOKEN:
            return FinishReason.ERROR
        if token == self.rules.end:
            return FinishReason.STOP
        self.tokens.append(token)
        return FinishReason.LENGTH if len(self.tokens) == self.sampling.max_new_tokens else FinishReason.RUNNING


@dataclass(frozen=True, slots=True, eq=False)
class LogProbabilities:
    """How likely the network held one token and its likeliest alternatives, before any rule."""

    chosen: float
    ids: np.ndarray
    """INT64 [n], the likeliest tokens, best first."""

    values: np.ndarray
    """FP32 [n], theirs."""


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """The next tokens of some rows."""

    tokens_N: np.ndarray
    """INT64 [N]; NO_TOKEN where a row has no finite score."""

    log_probabilities: Mapping[int, LogProbabilities]
    """By the row's index, for rows whose sampler asks for them and has got a token."""


def choose(scores_NV: np.ndarray, samplers: Sequence[Sampler | None], rules: TokenRules) -> Choices:
    """Next tokens by the chain of rules.

    Args:
        scores_NV: FP32, as the decoder gave them; changed in place by the rules.
        samplers: one a row; None where something else chooses, whose token here means nothing.
        rules: what holds for all rows, those of others' choice included.
    """
    raw = {
        index: (log_softmax(scores_NV[index]), sampler.alternatives)
        for index, sampler in enumerate(samplers)
        if sampler is not None and sampler.alternatives is not None
    }
    rules.apply(scores_NV)
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
    return Choices(
        tokens_N,
        {
            index: _told(logs_V, int(tokens_N[index]), alternatives)
            for index, (logs_V, alternatives) in raw.items()
            if tokens_N[index] != NO_TOKEN
        },
    )


def log_softmax(scores_V: np.ndarray) -> np.ndarray:
    """FP32; -inf everywhere where no score is finite."""
    highest = scores_V.max()
    if not np.isfinite(highest):
        return np.full_like(scores_V, -np.inf)
    shifted = scores_V - highest
    return shifted - np.float32(np.log(np.exp(shifted).sum(dtype=np.float64)))


def _told(logs_V: np.ndarray, token: int, alternatives: int) -> LogProbabilities:
    ids = largest(logs_V, alternatives) if alternatives else np.empty(0, np.int64)
    ids = ids[np.argsort(-logs_V[ids], kind="stable")]
    return LogProbabilities(chosen=float(logs_V[token]), ids=ids, values=logs_V[ids])
