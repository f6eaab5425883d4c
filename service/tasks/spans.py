"""Answer spans from tag scores: the SpanCRF of the network in numpy, a distribution for every window.

The label sequences over a window are O…O and, for every span of at most `max_tokens` tokens, O…O B I…I O…O. Each
is scored as in any linear-chain CRF (Lafferty et al. 2001): start + emissions + transitions + end. A span's score is
kept relative to that of O…O, so that in its window P(span) = exp(score) / (1 + Σ exp(scores)). Of a context's windows
every span counts in one: that which shows most of its surroundings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deploy.triton.manifest import CrfScores

OUTSIDE, BEGIN, INSIDE = range(3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A stretch of the context's tokens."""

    start: int
    end: int
    """Behind its last token."""


def make_windows(tokens: int, room: int) -> list[Window]:
    """Windows of at most `room` tokens over a context; neighbours share half of it, so that no answer is cut."""
    stride = max(1, room // 2)
    count = 1 + max(0, -(-(tokens - room) // stride))
    return [Window(start=n * stride, end=min(n * stride + room, tokens)) for n in range(count)]


def span_scores(emissions_S3: np.ndarray, crf: CrfScores, max_tokens: int) -> np.ndarray:
    """Score of every span relative to no span: float64 [S,L], span l of token s being [s, s + l + 1).

    -inf where it leaves the context, which has at least one token. L is min(max_tokens, S).
    """
    scores = emissions_S3.astype(np.float64)
    start, move, end = np.array(crf.start), np.array(crf.transition), np.array(crf.end)
    size = len(scores)
    longest = min(max_tokens, size)
    into_S = np.full(size, move[OUTSIDE, BEGIN] - move[OUTSIDE, OUTSIDE])
    into_S[:1] = start[BEGIN] - start[OUTSIDE]
    head_S = into_S + scores[:, BEGIN] - scores[:, OUTSIDE]

    # What one more I costs, summed over the tokens that follow each start.
    more_S = scores[:, INSIDE] - scores[:, OUTSIDE] + move[INSIDE, INSIDE] - move[OUTSIDE, OUTSIDE]
    padded = np.concatenate([more_S[1:], np.zeros(longest)])
    inner_SL = np.zeros((size, longest))
    if longest > 1:
        inner_SL[:, 1:] = np.lib.stride_tricks.sliding_window_view(padded, longest - 1)[:size].cumsum(1)
        inner_SL[:, 1:] += move[BEGIN, INSIDE] - move[INSIDE, INSIDE]

    leave_L = np.full(longest, move[INSIDE, OUTSIDE] - move[OUTSIDE, OUTSIDE])
    leave_L[0] = move[BEGIN, OUTSIDE] - move[OUTSIDE, OUTSIDE]
    stop_L = np.full(longest, end[INSIDE] - end[OUTSIDE])
    stop_L[0] = end[BEGIN] - end[OUTSIDE]
    end_SL = np.arange(size)[:, None] + np.arange(1, longest + 1)
    out_SL = np.where(end_SL == size, stop_L, leave_L)
    return np.where(end_SL <= size, head_S[:, None] + inner_SL + out_SL, -np.inf)


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Span:
    """Tokens of the context that may be the answer."""

    score: float
    """Log probability relative to that of no answer."""

    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanDistribution:
    """The best spans of one window, and what the window makes of all of them."""

    best: list[Span]
    """Best first; of equal ones the earlier."""

    log_total: float
    """log of the sum over all sequences, relative to O…O, which is one of them."""

    def probability(self, span: Span) -> float:
        """P(span) by this window."""
        return float(np.exp(span.score - self.log_total))

    @property
    def none_probability(self) -> float:
        """P(no answer) by this window."""
        return float(np.exp(-self.log_total))


@dataclass(frozen=True, kw_only=True, slots=True)
class SpanReader:
    """Turns tag scores of a context's windows into distributions."""

    windows: Sequence[Window]
    crf: CrfScores
    max_tokens: int
    count: int
    """How many of a window's best spans to keep."""

    def read(self, index: int, emissions_S3: np.ndarray) -> SpanDistribution:
        """The spans that count in a window, none of an empty one."""
        if not len(emissions_S3):
            return SpanDistribution(best=[], log_total=0.0)
        window = self.windows[index]
        scores_SL = span_scores(emissions_S3, self.crf, self.max_tokens)
        if len(self.windows) > 1:
            scores_SL[~self._shown_best_in(index, scores_SL.shape)] = -np.inf
        flat = scores_SL.ravel()
        count = min(self.count, flat.size)
        places = np.argpartition(flat, flat.size - count)[flat.size - count :]
        places = places[np.isfinite(flat[places])]
        first, more = np.divmod(places, scores_SL.shape[1])
        order = np.lexsort((more, first, -flat[places]))
        starts = window.start + first[order]
        ends = starts + more[order] + 1
        spans = [
            Span(score=score, start=start, end=end)
            for score, start, end in zip(flat[places[order]].tolist(), starts.tolist(), ends.tolist(), strict=True)
        ]
        return SpanDistribution(best=spans, log_total=_log_total(flat))

    def _shown_best_in(self, index: int, shape: tuple[int, int]) -> np.ndarray:
        """Which spans of a window count there: bool [S,L]. Of equals the first window has them."""
        start_S1 = self.windows[index].start + np.arange(shape[0])[:, None]
        end_SL = start_S1 + np.arange(1, shape[1] + 1)
        own = self._surroundings(index, start_S1, end_SL)
        counted = np.ones(shape, np.bool_)
        for other in range(max(0, index - 2), min(len(self.windows), index + 3)):
            if other != index:
                theirs = self._surroundings(other, start_S1, end_SL)
                counted &= (own > theirs) | ((own == theirs) & (index < other))
        return counted

    def _surroundings(self, index: int, start_S1: np.ndarray, end_SL: np.ndarray) -> np.ndarray:
        """Tokens that a window shows on the poorer side of spans; negative where it does not hold them.

        The context's own ends hide nothing.
        """
        window, beyond = self.windows[index], 1 << 30
        left = start_S1 - window.start
        right = window.end - end_SL
        if window.start == 0:
            left = np.where(left >= 0, beyond, left)
        if window.end == self.windows[-1].end:
            right = np.where(right >= 0, beyond, right)
        return np.minimum(left, right)


def _log_total(scores: np.ndarray) -> float:
    """log(1 + Σ exp(scores)), from which the largest is kept apart so that nothing overflows."""
    largest = max(0.0, float(scores.max()))
    return largest + float(np.log(np.exp(-largest) + np.exp(scores - largest).sum()))
