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


class Blocks(NamedTuple):
    """How windows lie on a row."""

    block: int
    halo: int
    begins_row: bool
    """Whether the first window has its halo behind, for want of tokens before it."""


class Frame(NamedTuple):
    """Where windows lie on the rows of a batch: whole rows, or a window for each of their blocks."""

    order_MW: Tensor
    """How the backward direction reads each window: its valid part reversed."""
    batch: int
    size: int
    blocks: Blocks | None = None

    def join(self, forward_MWU: Tensor, backward_MWU: Tensor) -> Tensor:
        """The directions' states on the windows → [B,S,2U], forward states first."""
        backward_MWU = _Permute.apply(backward_MWU, self.order_MW)
        if self.blocks is None:
            return torch.cat([forward_MWU, backward_MWU], dim=-1)
        block, halo, begins_row = self.blocks
        states_BNWU = forward_MWU.unflatten(0, (self.batch, -1))
        first = slice(block) if begins_row else slice(halo, None)
        own_BNKU = torch.cat([states_BNWU[:, :1, first], states_BNWU[:, 1:, halo:]], dim=1)
        halves = (own_BNKU, backward_MWU[:, :block])
        return torch.cat([half.reshape(self.batch, -1, half.shape[-1])[:, : self.size] for half in halves], dim=-1)


class Windows(NamedTuple):
    """What the directions of a recurrence read, both from left to right."""

    forward_MWD: Tensor
    backward_MWD: Tensor
    frame: Frame


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
        windows = self.windows(hidden_BSD, lengths_B, neighbours)
        return windows.frame.join(
            self._recur(windows.forward_MWD, "l0"), self._recur(windows.backward_MWD, "l0_reverse")
        )

    def windows(
        self, hidden_BSD: Tensor, lengths_B: Tensor | None = None, neighbours: Neighbours | None = None
    ) -> Windows:
        """What the two directions read, both from left to right; arguments as in `forward`."""
        batch, size, _ = hidden_BSD.shape
        if lengths_B is None:
            lengths_B = torch.full((batch,), size, device=hidden_BSD.device)
        if neighbours is None and (self.block is None or size <= self.block):
            order_BS = _reversed_rows(lengths_B, size)
            return Windows(hidden_BSD, _Permute.apply(hidden_BSD, order_BS), Frame(order_BS, batch, size))
        assert self.block is not None
        assert neighbours is None or size % self.block == 0
        return self._blocked(hidden_BSD, lengths_B, self.block, *(neighbours or Neighbours(None, None)))

    def _blocked(
        self, hidden_BSD: Tensor, lengths_B: Tensor, block: int, before_BHD: Tensor | None, after_BHD: Tensor | None
    ) -> Windows:
        """Both directions over N blocks, [B·N, block + halo, D] each."""
        batch, size, width = hidden_BSD.shape
        count, window = -(-size // block), block + self.halo
        padded = functional.pad(hidden_BSD, (0, 0, 0, count * block - size))
        blocks_BNKD = padded.view(batch, count, block, width)

        if before_BHD is None:
            first_B1WD = functional.pad(blocks_BNKD[:, :1], (0, 0, 0, self.halo))
        else:
            first_B1WD = torch.cat([before_BHD[:, None], blocks_BNKD[:, :1]], dim=2)
        others_BNWD = torch.cat([blocks_BNKD[:, :-1, block - self.halo :], blocks_BNKD[:, 1:]], dim=2)
        forward_BNWD = torch.cat([first_B1WD, others_BNWD], dim=1)

        if after_BHD is None:
            after_BNHD = functional.pad(blocks_BNKD[:, 1:, : self.halo], (0, 0, 0, 0, 0, 1))
        else:
            after_BNHD = torch.cat([blocks_BNKD[:, 1:, : self.halo], after_BHD[:, None]], dim=1)
        backward_MWD = torch.cat([blocks_BNKD, after_BNHD], dim=2).flatten(0, 1)
        begin_N = torch.arange(count, device=hidden_BSD.device) * block
        valid_M = (lengths_B[:, None] - begin_N).clamp(0, window).flatten()
        order_MW = _reversed_rows(valid_M, window)
        return Windows(
            forward_BNWD.flatten(0, 1),
            _Permute.apply(backward_MWD, order_MW),
            Frame(order_MW, batch, size, Blocks(block, self.halo, begins_row=before_BHD is None)),
        )

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

    def parameters_of(self, suffix: str) -> list[Tensor]:
        """A direction's `PARAMETERS`; suffix "l0" or "l0_reverse"."""
        return [getattr(self, f"{name}_{suffix}") for name in PARAMETERS]

    def _weights(self, suffix: str, dtype: torch.dtype) -> list[Tensor]:
        """One direction's parameters as views of one buffer: cuDNN would copy scattered ones at each call."""
        weights = self.parameters_of(suffix)
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
