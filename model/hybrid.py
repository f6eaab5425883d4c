"""The hybrid interaction layer: parallel units of attention and recurrence, mixed by learned shares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import SelfAttention
from model.configuration import HybridConfig
from model.recurrence import BidirectionalRecurrence


class HybridUnit(nn.Module):
    """LayerNorm(x + a + BiGRU(a)) with a = MHA(x)."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        width = config.d_model
        self.attention = SelfAttention(width, config.num_heads)
        self.recurrence = BidirectionalRecurrence(
            "GRU", width, width // 2, block=config.recurrent_block, halo=config.recurrent_halo
        )
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_BSD: Tensor, lengths_B: Tensor | None, mask: Tensor | None) -> Tensor:
        """[B,S,D] → [B,S,D]."""
        mixed_BSD = self.attention(hidden_BSD, mask)
        recurred_BSD = self.recurrence(mixed_BSD, lengths_B)
        return self.norm(hidden_BSD + self.dropout(mixed_BSD + recurred_BSD))


class HybridLayer(nn.Module):
    """Σ softmax(mix)_u · unit_u(x): the memory that every head reads."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.units = nn.ModuleList(HybridUnit(config) for _ in range(config.hybrid_units))
        self.mix = nn.Parameter(torch.zeros(config.hybrid_units))

    def forward(self, hidden_BSD: Tensor, lengths_B: Tensor | None, mask: Tensor | None) -> Tensor:
        """[B,S,D] → [B,S,D]."""
        shares_U = torch.softmax(self.mix, dim=0)
        states = [unit(hidden_BSD, lengths_B, mask) * shares_U[index] for index, unit in enumerate(self.units)]
        return torch.stack(states).sum(0) if len(states) > 1 else states[0]
