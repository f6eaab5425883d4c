"""Bidirectional GRU and LSTM over right-padded rows: exact, or in blocks that run side by side.

Every block starts from a zero state, warmed up on a halo of its neighbour; only its own outputs are kept:

    tokens      0 ……………… block ……………… 2·block ……………… 3·block … length
    forward                  halo├── own ──┤
    backward                     ├── own ──┤halo

A block's forward outputs do not depend on what follows it, nor its backward ones on what precedes it, so the window
[begin - halo, end + halo) that a block reads falls into two of one halo each. The first block has no halo before it:
zeros in its place would move its state. So its window has them behind, where nothing reads. Of a slice of longer rows
the first and the last block's halos lie outside: they come as `Neighbours`.

No packing and no wait for the host: forward states never meet the padding, which lies to the right, and the backward
direction reads every window reversed within its valid part.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

GATES = {"GRU": 3, "LSTM": 4}
PARAMETERS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class Neighbours(NamedTuple):
    """What stands around a slice of longer rows, each [B,halo,D]; None where the slice begins or ends them."""

    before: Tensor | None
    after: Tensor | None


class BidirectionalRecurrence(nn.Module):
    """One bidirectional layer, D → 2 · units; parameters have the names and shapes of nn.GRU's and nn.LSTM's.

    Args:
        kind: "GRU" or "LSTM".
        width: D.
        units: width of a direction's state.
        block: tokens of a block; None for the exact recurrence.
        halo: tokens of warm-up, at most a block.
    """

    def __init__(self, kind: str, width: int, units: int, *, block: int | None, halo: int) -> None:
        super().__init__()
        assert block is None or halo <= block
        self.kind, self.units, self.block, self.halo = kind, units, block, halo
        rows = GATES[kind] * units
        shapes = ((rows, width), (rows, units), (rows,), (rows,))
        for suffix in ("l0", "l0_reverse"):
            for name, shape in zip(PARAMETERS, shapes, strict=True):
                self.register_parameter(f"{name}_{suffix}", nn.Parameter(torch.empty(shape)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within ± 1/√units, as in PyTorch's own modules."""
        limit = 1 / math.sqrt(self.units)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -limit, limit)

    def forward(
        self, hidden_BSD: Tensor, lengths_B: Tensor | None = None, neighbours: Neighbours | None = None
    ) -> Tensor:
        """[B,S,D] → [B,S,2·units], forward states first; what lies behind a row's length means nothing.

        With `neighbours` the rows are a slice of longer ones, S a multiple of the block, and lengths count from the
        slice's beginning: they may be 0 or less, and exceed S.
        """
        batch, size, _ = hidden_BSD.shape
        if lengths_B is None:
            lengths_B = torch.full((batch,), size, device=hidden_BSD.device)
        if neighbours is not None:
            assert self.block is not None
            assert size % self.block == 0
            forward_BSU, backward_BSU = self._blocked(hidden_BSD, lengths_B, self.block, *neighbours)
        elif self.block is None or size <= self.block:
            forward_BSU = self._recur(hidden_BSD, "l0")
            backward_BSU = self._recur_backward(hidden_BSD, lengths_B)
        else:
            forward_BSU, backward_BSU = self._blocked(hidden_BSD, lengths_B, self.block)
        return torch.cat([forward_BSU, backward_BSU], dim=-1)

    def _blocked(
        self,
        hidden_BSD: Tensor,
        lengths_B: Tensor,
        block: int,
        before_BHD: Tensor | None = None,
        after_BHD: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Both directions over N blocks, each direction one call on [B·N, block + halo, D]."""
        batch, size, width = hidden_BSD.shape
        count, window = -(-size // block), block + self.halo
        padded = functional.pad(hidden_BSD, (0, 0, 0, count * block - size))
        blocks_BNKD = padded.view(batch, count, block, width)

        if before_BHD is None:
            first_B1WD = functional.pad(blocks_BNKD[:, :1], (0, 0, 0, self.halo))
        else:
            first_B1WD = torch.cat([before_BHD[:, None], blocks_BNKD[:, :1]], dim=2)
        others_BNWD = torch.cat([blocks_BNKD[:, :-1, block - self.halo :], blocks_BNKD[:, 1:]], dim=2)
        windows_BNWD = torch.cat([first_B1WD, others_BNWD], dim=1)
        states_MWU = self._recur(windows_BNWD.flatten(0, 1), "l0")
        states_BNWU = states_MWU.view(batch, count, window, self.units)
        own = slice(block) if before_BHD is None else slice(self.halo, None)
        own_BNKU = torch.cat([states_BNWU[:, :1, own], states_BNWU[:, 1:, self.halo :]], dim=1)
        forward_BSU = own_BNKU.reshape(batch, -1, self.units)[:, :size]

        if after_BHD is None:
            after_BNHD = functional.pad(blocks_BNKD[:, 1:, : self.halo], (0, 0, 0, 0, 0, 1))
        else:
            after_BNHD = torch.cat([blocks_BNKD[:, 1:, : self.halo], after_BHD[:, None]], dim=1)
        windows_BNWD = torch.cat([blocks_BNKD, after_BNHD], dim=2)
        begin_N = torch.arange(count, device=hidden_BSD.device) * block
        valid_M = (lengths_B[:, None] - begin_N).clamp(0, window).flatten()
        states_MWU = self._recur_backward(windows_BNWD.flatten(0, 1), valid_M)
        backward_BSU = states_MWU[:, :block].reshape(batch, -1, self.units)[:, :size]
        return forward_BSU, backward_BSU

    def _recur_backward(self, hidden_BSD: Tensor, lengths_B: Tensor) -> Tensor:
        """The backward direction over each row's valid part, [B,S,D] → [B,S,units]."""
        order_BS = _reversed_rows(lengths_B, hidden_BSD.shape[1])
        return _Permute.apply(self._recur(_Permute.apply(hidden_BSD, order_BS), "l0_reverse"), order_BS)

    def _recur(self, hidden_BSD: Tensor, suffix: str) -> Tensor:
        """One direction from left to right, one call of the library: [B,S,D] → [B,S,units]."""
        device = hidden_BSD.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_BSD.dtype
        weights = self._weights(suffix, dtype)
        state_1BU = torch.zeros(1, hidden_BSD.shape[0], self.units, device=hidden_BSD.device, dtype=dtype)
        # cuDNN keeps what a backward pass needs only in its training mode, whatever the module's.
        options = (True, 1, 0.0, torch.is_grad_enabled(), False, True)
        library: Any = torch._VF  # nn.GRU's own entry point
        # Under autocast cuDNN would be given fp16 copies, whatever type was asked for.
        with torch.autocast(device, enabled=False):
            if self.kind == "GRU":
                return library.gru(hidden_BSD.to(dtype), state_1BU, weights, *options)[0]
            return library.lstm(hidden_BSD.to(dtype), (state_1BU, state_1BU), weights, *options)[0]

    def _weights(self, suffix: str, dtype: torch.dtype) -> list[Tensor]:
        """One direction's parameters as views of one buffer: cuDNN would copy scattered ones at each call."""
        weights = [getattr(self, f"{name}_{suffix}") for name in PARAMETERS]
        flat = torch.cat([weight.flatten() for weight in weights]).to(dtype)
        parts = flat.split([weight.numel() for weight in weights])
        return [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)]


def _reversed_rows(lengths_B: Tensor, size: int) -> Tensor:
    """Flat row numbers [B,S] that read each row's valid part backwards and leave the rest in place."""
    place_S = torch.arange(size, device=lengths_B.device)
    last_B1 = lengths_B[:, None].long() - 1
    step_BS = torch.where(place_S <= last_B1, last_B1 - place_S, place_S)
    return step_BS + torch.arange(lengths_B.shape[0], device=lengths_B.device)[:, None] * size


class _Permute(torch.autograd.Function):
    """Reorder the rows of [B,S,D] by an order that is its own inverse.

    So the gradient is reordered alike; autograd's own way scatters it with atomic additions.
    """

    @staticmethod
    def forward(ctx: Any, hidden_BSD: Tensor, order_BS: Tensor) -> Tensor:
        ctx.save_for_backward(order_BS)
        return _take(hidden_BSD, order_BS)

    @staticmethod
    def backward(ctx: Any, gradient_BSD: Tensor) -> tuple[Tensor, None]:
        (order_BS,) = ctx.saved_tensors
        return _take(gradient_BSD, order_BS), None


def _take(hidden_BSD: Tensor, order_BS: Tensor) -> Tensor:
    return hidden_BSD.flatten(0, 1).index_select(0, order_BS.flatten()).view_as(hidden_BSD)
