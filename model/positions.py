"""Dynamic position encoding: a learned table, scaled per token by a learned gate on the token's embedding."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.rotary import angles

RMS = 1.0
"""Of the table before training: as large as token embeddings are, times √D, when they are learnt."""
SLOWEST = 1_000
"""How much slower the slowest sinusoid is than the fastest: it turns once in 6,283 tokens. Vaswani et al. 2017, 3.5,
have 10,000; a quarter of those hardly change over a table of 2,048 positions."""


def sinusoids(positions: int, width: int) -> Tensor:
    """Sines, then cosines, of `width / 2` frequencies, which is a whole number: [positions, width], mean square 1/2."""
    angle_PF = angles(positions, width, SLOWEST)
    return torch.cat([angle_PF.sin(), angle_PF.cos()], dim=1)


class DynamicPositions(nn.Module):
    """`√D·x + sigmoid(gate(x)) · table[i]`; a row longer than the table has the whole table stretched over it.

    The table begins as sinusoids, in which a distance looks alike everywhere. Embeddings enter times √D: as small as
    they are, the first layer would bury them and their positions (docs/training.md).
    """

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(positions, width))
        self.gate = nn.Linear(width, 1)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The table's; the gate has its own."""
        self.table.copy_(sinusoids(*self.table.shape) * (RMS * math.sqrt(2)))

    def forward(
        self,
        embedded_BSD: Tensor,
        lengths_B: Tensor | None = None,
        *,
        begin: int = 0,
        whole: int | None = None,
    ) -> Tensor:
        """Add positions 0, 1, … to embedded rows, or those of a slice of longer rows.

        Args:
            embedded_BSD: embeddings.
            lengths_B: tokens of each row, read where the rows exceed the table; None means all.
            begin: position of the first token given.
            whole: size of the rows that these are a slice of; None: S.
        """
        size = embedded_BSD.shape[1]
        whole = size if whole is None else whole
        if whole <= self.table.shape[0]:
            return self._add(embedded_BSD, self.table[begin : begin + size])
        if lengths_B is None:
            lengths_B = torch.full((1,), whole, device=self.table.device)
        return self._add(embedded_BSD, self._stretched(begin, size, lengths_B))

    def at(self, embedded_B1D: Tensor, position: int) -> Tensor:
        """Add one position, inside the table, to a token of every row."""
        return self._add(embedded_B1D, self.table[position])

    def _add(self, embedded_BSD: Tensor, positions: Tensor) -> Tensor:
        scale = math.sqrt(embedded_BSD.shape[-1])
        return embedded_BSD * scale + torch.sigmoid(self.gate(embedded_BSD)) * positions

    def _stretched(self, begin: int, size: int, lengths_B: Tensor) -> Tensor:
        """Table rows at i·(P-1)/(length-1) [B,S,D], interpolated; rows that fit the table read it plainly."""
        last = self.table.shape[0] - 1
        place_S = torch.arange(begin, begin + size, device=self.table.device, dtype=torch.float32)
        step_B1 = last / (lengths_B[:, None].float() - 1).clamp(min=last)
        index_BS = (place_S * step_B1).clamp(max=last)
        low_BS, high_BS = index_BS.floor(), index_BS.ceil()
        part_BS1 = (index_BS - low_BS)[..., None]
        low_BSD, high_BSD = self.table[low_BS.long()], self.table[high_BS.long()]
        return low_BSD + (high_BSD - low_BSD) * part_BS1
