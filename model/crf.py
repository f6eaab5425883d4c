"""A linear-chain CRF over the tags O, B, I whose sequences hold at most one span, solved in closed form.

The sequences over a context of n tokens are O…O and, for every span of at most `max_tokens` tokens, O…O B I…I O…O.
Each one's score is that of any linear-chain CRF (Lafferty et al. 2001): start + emissions + transitions + end. All
but the span's own terms are those of O…O, so a span needs only its difference from that:

    Δ(s, e) = B(s) - O(s) + Σ_{s<t<e} I(t) - O(t)  +  the transitions into, inside and out of the span, less O's

Inner sums run over at most `max_tokens` terms, so long contexts cost no precision, and all spans are scored at once.
The partition function, relative to O…O, is one logsumexp over 0 and all Δ; Viterbi is an argmax; n-best is a top-k.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

OUTSIDE, BEGIN, INSIDE = range(3)
TAGS = 3


class Spans(NamedTuple):
    """The most probable spans of every row, best first."""

    start: Tensor
    """[B,K]: first token."""

    end: Tensor
    """[B,K]: behind the last token."""

    probability: Tensor
    """[B,K]; 0 where a row has fewer than K spans; such entries mean nothing."""

    none: Tensor
    """[B]: probability of no span at all."""


class SpanCRF(nn.Module):
    """Probabilities of all spans of at most `max_tokens` tokens, and of none."""

    def __init__(self, max_tokens: int) -> None:
        super().__init__()
        self.max_tokens = max_tokens
        self.start = nn.Parameter(torch.zeros(TAGS))
        self.transition = nn.Parameter(torch.zeros(TAGS, TAGS))
        self.end = nn.Parameter(torch.zeros(TAGS))

    def span_scores(self, emissions_BS3: Tensor, context_B2: Tensor) -> Tensor:
        """Δ of every span, float32 [B,S,L]: the score of the span of l + 1 tokens from s, less that of no span.

        Args:
            emissions_BS3: scores of O, B, I.
            context_B2: first token of the context, and the one behind its last; equal where it is empty.

        Returns:
            Scores; -inf where a span leaves the context. L is min(max_tokens, S).
        """
        scores_BS3 = emissions_BS3.float()
        start, move, end = self.start.float(), self.transition.float(), self.end.float()
        size = scores_BS3.shape[1]
        longest = min(self.max_tokens, size)
        first_B1, behind_B1 = context_B2[:, :1], context_B2[:, 1:]
        place_S = torch.arange(size, device=scores_BS3.device)
        length_L = torch.arange(1, longest + 1, device=scores_BS3.device)
        end_SL = place_S[:, None] + length_L

        into_BS = torch.where(
            place_S == first_B1, start[BEGIN] - start[OUTSIDE], move[OUTSIDE, BEGIN] - move[OUTSIDE, OUTSIDE]
        )
        head_BS = into_BS + scores_BS3[..., BEGIN] - scores_BS3[..., OUTSIDE]

        # What one more I costs, then sums of 0, 1, 2 … of them behind each start.
        more_BS = scores_BS3[..., INSIDE] - scores_BS3[..., OUTSIDE] + move[INSIDE, INSIDE] - move[OUTSIDE, OUTSIDE]
        following_BSL = functional.pad(more_BS[:, 1:], (0, longest)).unfold(1, longest, 1)
        inner_BSL = functional.pad(following_BSL[..., : longest - 1].cumsum(-1), (1, 0))
        single_L = length_L == 1
        inner_BSL = inner_BSL + torch.where(single_L, 0, move[BEGIN, INSIDE] - move[INSIDE, INSIDE])

        leave_L = torch.where(single_L, move[BEGIN, OUTSIDE], move[INSIDE, OUTSIDE]) - move[OUTSIDE, OUTSIDE]
        stop_L = torch.where(single_L, end[BEGIN], end[INSIDE]) - end[OUTSIDE]
        out_BSL = torch.where(end_SL == behind_B1[..., None], stop_L, leave_L)

        inside_BSL = (place_S >= first_B1)[..., None] & (end_SL <= behind_B1[..., None])
        return (head_BS[..., None] + inner_BSL + out_BSL).masked_fill(~inside_BSL, float("-inf"))

    def log_probabilities(self, emissions_BS3: Tensor, context_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Log probabilities of no span [B] and of every span [B,S,L]; arguments as in `span_scores`."""
        scores_BSL = self.span_scores(emissions_BS3, context_B2)
        total_B = _log_partition(scores_BSL)
        return -total_B, scores_BSL - total_B[:, None, None]

    def nll(self, emissions_BS3: Tensor, context_B2: Tensor, answer_B2: Tensor) -> Tensor:
        """Negative log probability of the gold sequence, float32 [B].

        `answer_B2` has its first token and the one behind its last, inside the context, or (-1, -1) where there is no
        answer. Of an answer beyond `max_tokens` only its beginning counts.
        """
        scores_BSL = self.span_scores(emissions_BS3, context_B2)
        start_B, end_B = answer_B2.long().unbind(1)
        length_B = (end_B - start_B).clamp(1, scores_BSL.shape[2])
        rows_B = torch.arange(len(start_B), device=start_B.device)
        span_B = scores_BSL[rows_B, start_B.clamp(min=0), length_B - 1]
        return _log_partition(scores_BSL) - torch.where(start_B < 0, 0, span_B)

    @torch.no_grad()
    def best(self, emissions_BS3: Tensor, context_B2: Tensor, count: int = 1) -> Spans:
        """The `count` most probable spans, at most S · L. The Viterbi path is the first one, or no span if likelier."""
        none_B, spans_BSL = self.log_probabilities(emissions_BS3, context_B2)
        longest = spans_BSL.shape[2]
        flat_BX = spans_BSL.flatten(1)
        top = flat_BX.topk(min(count, flat_BX.shape[1]), dim=1)
        start_BK = top.indices // longest
        return Spans(start_BK, start_BK + top.indices % longest + 1, top.values.exp(), none_B.exp())


def _log_partition(scores_BSL: Tensor) -> Tensor:
    """log of the sum over all sequences, relative to no span's: [B]."""
    return torch.logsumexp(functional.pad(scores_BSL.flatten(1), (1, 0)), dim=1)
