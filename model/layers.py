"""What encoder and decoders share beside attention: the feed-forward network."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class FeedForward(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner)
        self.down = nn.Linear(inner, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """[…,D] → […,D]."""
        return self.down(functional.gelu(self.up(hidden)))
