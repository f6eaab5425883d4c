"""The router: which task a row asks for."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.attention import token_mask
from model.configuration import HybridConfig

TASKS = ("generation", "qa", "summary")
"""In the order of the router's outputs."""


class Router(nn.Module):
    """Mean of a row's memory → Linear → GELU → a score for each task."""

    def __init__(self, config: HybridConfig) -> None:
        super().__init__()
        self.hidden = nn.Linear(config.d_model, config.d_model)
        self.output = nn.Linear(config.d_model, len(TASKS))

    def forward(self, memory_BSD: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """[B,S,D] → logits [B,3]."""
        return self.scores(_mean(memory_BSD, lengths_B))

    def scores(self, mean_BD: Tensor) -> Tensor:
        """The mean of each row's memory [B,D] → logits [B,3]."""
        return self.output(functional.gelu(self.hidden(mean_BD)))


def _mean(memory_BSD: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Mean over each row's tokens, [B,D]."""
    if lengths_B is None:
        return memory_BSD.mean(1)
    # A choice, not a product: padding may hold anything, infinities included.
    inside_BS1 = token_mask(lengths_B, memory_BSD.shape[1])[..., None]
    return torch.where(inside_BS1, memory_BSD, 0).sum(1) / lengths_B[:, None]
