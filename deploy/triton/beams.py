"""Beam search over the rows of one request, after transformers' (its early_stopping=False).

Every step keeps the likeliest `num_beams` unfinished continuations, one a cache row. A continuation by the end token
among the likeliest `num_beams` is a finished answer, ranked by log probability / tokens ** length_penalty, where the
end counts as a token. The search ends when it has `num_beams` answers and none of the beams would beat the worst of
them at its present length, or when the answers are as long as allowed.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

import numpy as np

from .candidates import largest
from .protocol import FinishReason, Sampling
from .rules import Rule, TokenRules, rules_of
from .sampling import log_softmax


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BeamStep:
    """What the rows do next."""

    tokens: np.ndarray
    """INT64 [K], the token each row reads next."""

    parents: np.ndarray
    """INT64 [K], the row whose cache each row continues."""

    finish_reason: FinishReason


@dataclass(order=True, slots=True)
class _Answer:
    score: float
    order: int
    tokens: list[int] = field(compare=False)
    finish_reason: FinishReason = field(compare=False)


@dataclass(slots=True, eq=False)
class BeamSearch:
    """The beams of one request."""

    sampling: Sampling
    rules: TokenRules
    tokens: list[int] = field(default_factory=list)
    """The answer; empty until the search has ended."""

    _chain: tuple[Rule, ...] = field(init=False, repr=False)
    _beams: np.ndarray = field(init=False, repr=False)
    _scores: np.ndarray = field(init=False, repr=False)
    _length: int = field(default=0, repr=False)
    _answers: list[_Answer] = field(default_factory=list, repr=False)
    _found: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        count = self.sampling.num_beams
        self._chain = rules_of(self.sampling, self.rules.end)
        self._beams = np.zeros((count, self.sampling.max_new_tokens), np.int64)
        # All rows start equal: only the first one counts, or the beams would stay copies of one another.
        self._scores = np.full(count, -np.inf)
        self._scores[0] = 0.0

    def advance(self, scores_KV: np.ndarray) -> BeamStep:
        """Choose the next tokens.

        Args:
            scores_KV: FP32, scores (logits or log probabilities) of the rows' next tokens; not kept.
        """
        tokens, parents, scores = self._continuations(scores_KV)
        count = len(tokens)
        self._beams[:count] = self._beams[parents]
        self._beams[:count, self._length] = tokens
        self._scores[:] = -np.inf
        self._scores[:count] = scores
        self._length += 1
        reason = self._conclude()
        idle = self.sampling.num_beams - count
        return BeamStep(
            tokens=np.concatenate([tokens, np.full(idle, self.rules.end)]),
            parents=np.concatenate([parents, np.zeros(idle, np.int64)]),
            finish_reason=reason,
        )

    def _continuations(self, scores_KV: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best unfinished continuations: tokens, parents, log probabilities, best first, at most K of each."""
        count = self.sampling.num_beams
        tokens, parents, scores = self._candidates(scores_KV)
        best = np.lexsort((tokens, parents, -scores))[: 2 * count]
        tokens, parents, scores = tokens[best], parents[best], scores[best]
        ends = tokens == self.rules.end
        for index in np.flatnonzero(ends[:count]):
            answer = self._beams[parents[index], : self._length].tolist()
            self._finish(answer, float(scores[index]), self._length + 1, FinishReason.STOP)
        going = np.flatnonzero(~ends)[:count]
        return tokens[going], parents[going], scores[going]

    def _candidates(self, scores_KV: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The likeliest 2K continuations of every living beam; enough even if K of them end."""
        wanted = min(2 * self.sampling.num_beams, scores_KV.shape[1])
        tokens, parents, scores = [], [], []
        for beam in np.flatnonzero(np.isfinite(self._scores)):
            logs_V = log_softmax(scores_KV[beam])
            for rule in self._chain:
                rule.apply(logs_V, self._beams[beam, : self._length])
            ids = largest(logs_V, wanted)
            ids = ids[np.isfinite(logs_V[ids])]
            tokens.append(ids)
            parents.append(np.full(len(ids), beam))
            scores.append(self._scores[beam] + logs_V[ids])
        return np.concatenate(tokens), np.concatenate(parents), np.concatenate(scores)

    def _conclude(self) -> FinishReason:
        """Whether the search has ended; if so, `tokens` holds the best answer."""
        alive = np.flatnonzero(np.isfinite(self._scores))
        if self._length == self.sampling.max_new_tokens:
            for beam in alive:
                self._finish(self._beams[beam].tolist(), float(self._scores[beam]), self._length, FinishReason.LENGTH)
        elif len(alive) and not self._is_settled(float(self._scores.max())):
            return FinishReason.RUNNING
        if not self._answers:
            return FinishReason.ERROR
        best = max(self._answers)
        self.tokens = best.tokens
        return best.finish_reason

    def _is_settled(self, best: float) -> bool:
        if len(self._answers) < self.sampling.num_beams:
            return False
        return self._answers[0].score >= best / self._length**self.sampling.length_penalty

    def _finish(self, tokens: list[int], score: float, length: int, reason: FinishReason) -> None:
        """Keep the answer if it is among the best K."""
        self._found += 1
        answer = _Answer(score / length**self.sampling.length_penalty, -self._found, tokens, reason)
        if len(self._answers) < self.sampling.num_beams:
            heapq.heappush(self._answers, answer)
        else:
            heapq.heappushpop(self._answers, answer)
