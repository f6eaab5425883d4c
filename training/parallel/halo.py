"""The block recurrences of rows that are split over a group: a halo from either neighbour is all they need.

    rank 0  ├── block ──┼── block ──┤halo
    rank 1              halo├── block ──┼── block ──┤halo
    rank 2                                      halo├── block ──┼── …

A slice holds whole blocks, so no block of it but the first and the last reads anything of the neighbours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model.recurrence import Neighbours
from training.parallel.link import Exchange, Link


class Halo:
    """The tokens beside this rank's slice, on their way."""

    def __init__(self, link: Link, hidden_BsD: Tensor, tokens: int) -> None:
        self.before, self.after = link.rank > 0, link.rank < link.size - 1
        self.tokens = tokens
        self.exchange: Exchange | None = None
        if tokens:
            sizes = [tokens if abs(rank - link.rank) == 1 else 0 for rank in range(link.size)]
            edges = [hidden_BsD[:, :tokens]] * self.before + [hidden_BsD[:, -tokens:]] * self.after
            self.exchange = link.start(_by_token(edges), sizes)

    def finish(self) -> Neighbours:
        """What stands there, each [B,tokens,D]; None beside the ends of the rows, and where no halo is read."""
        if self.exchange is None:
            return Neighbours(None, None)
        received = self.exchange.finish().transpose(0, 1)
        return Neighbours(
            received[:, : self.tokens] if self.before else None, received[:, -self.tokens :] if self.after else None
        )


def _by_token(edges: list[Tensor]) -> Tensor:
    """[B,tokens,D] each → [tokens of all,B,D]: an exchange is cut along its first dimension."""
    return torch.cat(edges, dim=1).transpose(0, 1)
