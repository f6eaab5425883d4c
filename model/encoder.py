"""The base encoder: gated positions and pre-norm Transformer layers, bidirectional."""

from __future__ import annotations

from torch import Tensor, nn

from model.attention import RowPositions, SelfAttention
from model.configuration import HybridConfig
from model.layers import FeedForward
from model.positions import DynamicPositions


class EncoderLayer(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x))."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.d_model)
        self.attention = SelfAttention(config.d_model, config.num_heads)
        self.feed_forward_norm = nn.LayerNorm(config.d_model)
        self.feed_forward = FeedForward(config.d_model, config.encoder_ffn)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_BSD: Tensor, positions: RowPositions) -> Tensor:
        """[B,S,D] → [B,S,D]."""
        hidden_BSD = hidden_BSD + self.dropout(self.attention(self.attention_norm(hidden_BSD), positions))
        return hidden_BSD + self.dropout(self.feed_forward(self.feed_forward_norm(hidden_BSD)))


class Encoder(nn.Module):
    """Embedded tokens to normalised hidden states."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.positions = DynamicPositions(config.max_positions, config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.encoder_layers))
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, embedded_BSD: Tensor, lengths_B: Tensor | None, positions: RowPositions) -> Tensor:
        """[B,S,D] → [B,S,D]."""
        hidden_BSD = self.begin(embedded_BSD, lengths_B)
        for layer in self.layers:
            hidden_BSD = layer(hidden_BSD, positions)
        return self.norm(hidden_BSD)

    def begin(self, embedded_BSD: Tensor, lengths_B: Tensor | None) -> Tensor:
        """What the first layer reads, [B,S,D]."""
        return self.dropout(self.positions(embedded_BSD, lengths_B))
