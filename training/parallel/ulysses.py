"""Attention over rows that are split over a group (Jacobs et al. 2023, "DeepSpeed Ulysses").

A rank holds a slice of every row and all heads; attention needs whole rows, and cares for one head at a time. So one
exchange turns slices of all heads into whole rows of some heads, and another turns the result back:

    [B, H, S/N, E] ── exchange ──▶ [B, H/N, S, E] ── attention ── exchange ──▶ [B, H, S/N, E]

Sizes in the names of shapes: s is a slice of S, h a rank's share of the heads, N the ranks, 3 query, key and value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.attention import RowPositions, SelfAttention, merge_heads, mix
from training.parallel.link import Link
from training.turns import Steps


def self_attention(link: Link, attention: SelfAttention, hidden_BsD: Tensor, positions: RowPositions) -> Steps[Tensor]:
    """[B,s,D] → [B,s,D]; the positions are those of whole rows."""
    projected_3BHsE = torch.stack(attention.projected(hidden_BsD))
    to_rows = link.start(projected_3BHsE.unflatten(2, (link.size, -1)).movedim(2, 0))
    yield
    received_N3BhsE = to_rows.finish()
    query, key, value = received_N3BhsE.movedim(0, 3).flatten(3, 4)
    mixed_BhSE = mix(query, key, value, positions)
    to_slices = link.start(mixed_BhSE.unflatten(2, (link.size, -1)).movedim(2, 0))
    yield
    received_NBhsE = to_slices.finish()
    return attention.out(merge_heads(received_NBhsE.movedim(0, 1).flatten(1, 2)))
