"""Multi-head attention on PyTorch's fused kernel: over whole rows, and one token at a time on a cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.rotary import Rotation, rotate


def token_mask(lengths_B: Tensor, size: int) -> Tensor:
    """True at each row's tokens, [B,S]."""
    return torch.arange(size, device=lengths_B.device) < lengths_B[:, None]


def key_mask(lengths_B: Tensor | None, size: int) -> Tensor | None:
    """True where a key may be read, [B,1,1,S]; None where all may, which lets the fastest kernels run."""
    return None if lengths_B is None else token_mask(lengths_B, size)[:, None, None]


class RowPositions(NamedTuple):
    """Where the tokens of a source's rows are, for the attention of the rows to themselves."""

    mask: Tensor | None
    """Which keys may be read, as `key_mask` makes it."""
    rotation: Rotation


def split_heads(hidden_BSD: Tensor, heads: int) -> Tensor:
    """[B,S,D] → [B,H,S,E]."""
    return hidden_BSD.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(mixed_BHSE: Tensor) -> Tensor:
    """[B,H,S,E] → [B,S,D]."""
    return mixed_BHSE.transpose(1, 2).flatten(2)


def mix(query: Tensor, key: Tensor, value: Tensor, positions: RowPositions) -> Tensor:
    """What whole rows of a source make of their queries, keys and values, each [B,H,S,E] → [B,H,S,E]."""
    query, key = rotate(query, positions.rotation), rotate(key, positions.rotation)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=positions.mask)


def read(query_BHTE: Tensor, keys_BKSE: Tensor, values_BKSE: Tensor, mask: Tensor | None = None) -> Tensor:
    """What queries make of keys and values that all of them may read but for the mask, [B,H,T,E] → [B,H,T,E].

    Query heads that share a key head are laid out as more queries of that head: keys and values are never repeated,
    and every fused kernel takes it, also those that know no groups.
    """
    heads, kv_heads = query_BHTE.shape[1], keys_BKSE.shape[1]
    # K key heads of G query heads each: head h reads key head h // G, as ONNX Runtime's GroupQueryAttention has it.
    query_BKUE = query_BHTE.unflatten(1, (kv_heads, heads // kv_heads)).flatten(2, 3)
    mixed_BKUE = functional.scaled_dot_product_attention(query_BKUE, keys_BKSE, values_BKSE, attn_mask=mask)
    return mixed_BKUE.unflatten(2, (heads // kv_heads, -1)).flatten(1, 2)


class SelfAttention(nn.Module):
    """Attention of rows to themselves: of a source's, whose queries and keys are turned by their place, or causal.

    With fewer key and value heads than heads, equal groups of heads share one (Ainslie et al. 2023, "GQA", 2.2).
    """

    def __init__(self, width: int, heads: int, kv_heads: int | None = None) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads or heads
        self.qkv = nn.Linear(width, width + 2 * width // heads * self.kv_heads, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    @property
    def shares(self) -> tuple[int, int, int]:
        """Heads of the queries, keys and values in `qkv`, which stand one below the other."""
        return self.heads, self.kv_heads, self.kv_heads

    def forward(self, hidden_BSD: Tensor, positions: RowPositions | None = None) -> Tensor:
        """[B,S,D] → [B,S,D]; without positions, causal."""
        query, key, value = self.projected(hidden_BSD)
        if positions is None:
            grouped = self.kv_heads < self.heads
            mixed_BHSE = functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)
        else:
            mixed_BHSE = mix(query, key, value, positions)
        return self.out(merge_heads(mixed_BHSE))

    def step(self, hidden_B1D: Tensor, keys_BKTE: Tensor, values_BKTE: Tensor, position: int) -> Tensor:
        """Attention of one more token to those before it and itself; its key and value enter the cache."""
        query, key, value = self.projected(hidden_B1D)
        keys_BKTE[:, :, position : position + 1] = key
        values_BKTE[:, :, position : position + 1] = value
        known = slice(0, position + 1)
        return self.out(merge_heads(read(query, keys_BKTE[:, :, known], values_BKTE[:, :, known])))

    def projected(self, hidden_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B,H,S,E], keys and values [B,K,S,E]."""
        all_heads = split_heads(self.qkv(hidden_BSD), sum(self.shares))
        query, key, value = all_heads.split(self.shares, dim=1)
        return query, key, value


class CrossAttention(nn.Module):
    """Attention of a target's rows to a source's memory, whose key and value heads groups of heads share."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width // heads * kv_heads, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, hidden_BTD: Tensor, memory_BSD: Tensor, mask: Tensor | None) -> Tensor:
        """[B,T,D] reading [B,S,D] → [B,T,D]."""
        return self.attend(hidden_BTD, *self.keys_values(memory_BSD), mask)

    def keys_values(self, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """The memory's keys and values, each [B,K,S,E]."""
        key, value = (split_heads(part, self.kv_heads) for part in self.kv(memory_BSD).chunk(2, dim=-1))
        return key, value

    def attend(self, hidden_BTD: Tensor, keys_BKSE: Tensor, values_BKSE: Tensor, mask: Tensor | None) -> Tensor:
        """[B,T,D] reading keys and values → [B,T,D]."""
        query_BHTE = split_heads(self.q(hidden_BTD), self.heads)
        return self.out(merge_heads(read(query_BHTE, keys_BKSE, values_BKSE, mask)))
