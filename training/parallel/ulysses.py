"""Attention over rows that are split over a group (Jacobs et al. 2023, "DeepSpeed Ulysses").

A rank holds a slice of every row and all heads; attention needs whole rows, and cares for one head at a time. So one
exchange turns slices of all heads into whole rows of some heads, and another turns the result back:

    [B, H, S/N, E] ── exchange ──▶ [B, H/N, S, E] ── attention ── exchange ──▶ [B, H, S/N, E]

A decoder reads a source's keys and values in the same way: each rank projects its slice of the memory, and gets those
of its heads from the others. They depend on nothing else, so they are sent a layer ahead of their use.

Sizes in the names of shapes: s, t slices of S, T; h a rank's share of the heads; N ranks; P tensors of one exchange.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.attention import CrossAttention, SelfAttention, merge_heads, split_heads
from training.parallel.link import Exchange, Link, Steps


def self_attention(
    link: Link, attention: SelfAttention, hidden_BsD: Tensor, mask: Tensor | None, *, causal: bool = False
) -> Steps[Tensor]:
    """[B,s,D] → [B,s,D]; the mask is that of whole rows, [B,1,1,S]."""
    projected = _to_whole_rows(link, torch.stack(attention.projected(hidden_BsD)))
    yield
    query, key, value = _whole_rows(projected)
    mixed_BhSE = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    return (yield from _back_to_slices(link, attention, mixed_BhSE))


def start_keys_values(link: Link, attention: CrossAttention, memory_BsD: Tensor) -> Exchange:
    """Send the memory's keys and values on their way to their heads' ranks."""
    return _to_whole_rows(link, torch.stack(attention.keys_values(memory_BsD)))


def cross_attention(
    link: Link, attention: CrossAttention, hidden_BtD: Tensor, keys_values: Exchange, mask: Tensor | None
) -> Steps[Tensor]:
    """[B,t,D] reading whole sources → [B,t,D]; the mask as in `self_attention`."""
    queries = _to_whole_rows(link, split_heads(attention.q(hidden_BtD), attention.heads)[None])
    yield
    (query_BhTE,) = _whole_rows(queries)
    key_BhSE, value_BhSE = _whole_rows(keys_values)
    mixed_BhTE = functional.scaled_dot_product_attention(query_BhTE, key_BhSE, value_BhSE, attn_mask=mask)
    return (yield from _back_to_slices(link, attention, mixed_BhTE))


def _back_to_slices(link: Link, attention: SelfAttention | CrossAttention, mixed_BhSE: Tensor) -> Steps[Tensor]:
    sent_NBhsE = mixed_BhSE.unflatten(2, (link.size, -1)).movedim(2, 0)
    exchange = link.start(sent_NBhsE)
    yield
    mixed_BHsE = exchange.finish().movedim(0, 1).flatten(1, 2)
    return attention.out(merge_heads(mixed_BHsE))


def _to_whole_rows(link: Link, projected_PBHsE: Tensor) -> Exchange:
    return link.start(projected_PBHsE.unflatten(2, (link.size, -1)).movedim(2, 0))


def _whole_rows(exchange: Exchange) -> Tensor:
    """[N,P,B,h,s,E] → [P,B,h,S,E]."""
    return exchange.finish().movedim(0, 3).flatten(3, 4)
