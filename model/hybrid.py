"""The hybrid interaction layer: parallel units of attention and recurrence, mixed by learned shares."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.attention import RowPositions, SelfAttention
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

    def forward(self, hidden_BSD: Tensor, lengths_B: Tensor | None, positions: RowPositions) -> Tensor:
        """[B,S,D] → [B,S,D]."""
        mixed_BSD = self.attention(hidden_BSD, positions)
        return self.add(hidden_BSD, mixed_BSD, self.recurrence(mixed_BSD, lengths_B))

    def add(self, hidden_BSD: Tensor, mixed_BSD: Tensor, recurred_BSD: Tensor) -> Tensor:
        """LayerNorm(x + a + BiGRU(a)), from its three parts."""
        return self.norm(hidden_BSD + self.dropout(mixed_BSD + recurred_BSD))


class HybridLayer(nn.Module):
    """Σ softmax(mix)_u · unit_u(x): the memory that every head reads."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.units = nn.ModuleList(HybridUnit(config) for _ in range(config.hybrid_units))
        self.mix = nn.Parameter(torch.zeros(config.hybrid_units))

    def forward(self, hidden_BSD: Tensor, lengths_B: Tensor | None, positions: RowPositions) -> Tensor:
        """[B,S,D] → [B,S,D]."""
        return self.weigh([unit(hidden_BSD, lengths_B, positions) for unit in self.units])

    def weigh(self, states: list[Tensor]) -> Tensor:
        """The units' states by their shares, [B,S,D]."""
        shares_U = torch.softmax(self.mix, dim=0)
        weighed = [state_BSD * share for state_BSD, share in zip(states, shares_U.unbind(), strict=True)]
        return torch.stack(weighed).sum(0) if len(weighed) > 1 else weighed[0]
