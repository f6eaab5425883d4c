"""The causal decoder: Transformer layers that read what was written so far, and the source's memory.

`forward` reads whole targets, for training; `prefill` and `step` decode token by token on caches.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from model.attention import CrossAttention, SelfAttention
from model.configuration import HybridConfig
from model.layers import FeedForward
from model.positions import DynamicPositions


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCache:
    """Keys and values of one layer, [B,K,positions,E] for K key and value heads."""

    self_keys: Tensor
    self_values: Tensor
    cross_keys: Tensor
    cross_values: Tensor


@dataclass(kw_only=True, slots=True)
class DecoderCache:
    """A batch while it is decoded."""

    layers: list[LayerCache]
    mask: Tensor | None
    """Of the source, as `key_mask` makes it."""

    position: int = 0
    """Tokens read so far."""


class DecoderLayer(nn.Module):
    """x += self_attention(norm(x)); x += cross_attention(norm(x), memory); x += feed_forward(norm(x))."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(config.d_model)
        self.self_attention = SelfAttention(config.d_model, config.num_heads, config.num_kv_heads)
        self.cross_norm = nn.LayerNorm(config.d_model)
        self.cross_attention = CrossAttention(config.d_model, config.num_heads, config.num_kv_heads)
        self.feed_forward_norm = nn.LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config.d_model, config.decoder_ffn)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_BTD: Tensor, memory_BSD: Tensor, mask: Tensor | None) -> Tensor:
        """[B,T,D] → [B,T,D]."""
        hidden_BTD = hidden_BTD + self.dropout(self.self_attention(self.self_norm(hidden_BTD)))
        hidden_BTD = hidden_BTD + self.dropout(self.cross_attention(self.cross_norm(hidden_BTD), memory_BSD, mask))
        return hidden_BTD + self.dropout(self.feed_forward(self.feed_forward_norm(hidden_BTD)))

    def step(self, hidden_B1D: Tensor, cache: LayerCache, mask: Tensor | None, position: int) -> Tensor:
        """One more token of every row, [B,1,D] → [B,1,D]."""
        own = self.self_attention.step(self.self_norm(hidden_B1D), cache.self_keys, cache.self_values, position)
        hidden_B1D = hidden_B1D + own
        read = self.cross_attention.attend(self.cross_norm(hidden_B1D), cache.cross_keys, cache.cross_values, mask)
        hidden_B1D = hidden_B1D + read
        return hidden_B1D + self.feed_forward(self.feed_forward_norm(hidden_B1D))


class Decoder(nn.Module):
    """Embedded target tokens to normalised states, from which the tied output layer makes logits."""

    def __init__(self, config: HybridConfig, layers: int) -> None:
        super().__init__()
        self.positions = DynamicPositions(config.max_target_positions, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(layers))
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, embedded_BTD: Tensor, memory_BSD: Tensor, mask: Tensor | None) -> Tensor:
        """[B,T,D] → states [B,T,D]; a state depends on no later token.

        Raises ValueError where T exceeds the position table.
        """
        hidden_BTD = self.begin(embedded_BTD)
        for layer in self.layers:
            hidden_BTD = layer(hidden_BTD, memory_BSD, mask)
        return self.norm(hidden_BTD)

    def begin(self, embedded_BTD: Tensor) -> Tensor:
        """What the first layer reads, [B,T,D]. Raises ValueError where T exceeds the position table."""
        self._check(embedded_BTD.shape[1])
        return self.dropout(self.positions(embedded_BTD))

    def prefill(self, memory_BSD: Tensor, mask: Tensor | None, capacity: int) -> DecoderCache:
        """Caches for up to `capacity` tokens. Raises ValueError where that exceeds the position table."""
        self._check(capacity)
        caches = []
        for layer in self._decoder_layers:
            keys_BKSE, values_BKSE = layer.cross_attention.keys_values(memory_BSD)
            batch, heads, _, head_width = keys_BKSE.shape
            own = [keys_BKSE.new_zeros(batch, heads, capacity, head_width) for _ in range(2)]
            cache = LayerCache(self_keys=own[0], self_values=own[1], cross_keys=keys_BKSE, cross_values=values_BKSE)
            caches.append(cache)
        return DecoderCache(layers=caches, mask=mask)

    def step(self, embedded_B1D: Tensor, cache: DecoderCache) -> Tensor:
        """Read one token of every row, [B,1,D] → state [B,1,D]; the cache moves on. For inference: no dropout."""
        hidden_B1D = self.positions.at(embedded_B1D, cache.position)
        for layer, own in zip(self._decoder_layers, cache.layers, strict=True):
            hidden_B1D = layer.step(hidden_B1D, own, cache.mask, cache.position)
        cache.position += 1
        return self.norm(hidden_B1D)

    @property
    def _decoder_layers(self) -> Iterable[DecoderLayer]:
        return cast("Iterable[DecoderLayer]", self.layers)

    def _check(self, tokens: int) -> None:
        limit = self.positions.table.shape[0]
        if tokens > limit:
            raise ValueError(f"a target of {tokens} tokens exceeds max_target_positions = {limit}: shorten it")
