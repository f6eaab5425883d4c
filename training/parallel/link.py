"""What the ranks of a group send one another: an all-to-all in two halves, so that compute fits between them.

    forward     start ───── local compute ─────▶ finish
    backward   finish ◀──── its backward ────── start

The gradient of an all-to-all is the all-to-all back. Autograd runs a graph in the reverse order of its making, so what
was computed between the halves hides the gradient's way too. All else is made of this one exchange, and of PyTorch's
own operations: to gather is to send everyone the same, and that gradient's sum is `expand`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor


class Work(Protocol):
    """A transfer on its way."""

    def wait(self) -> Any:
        """Return when its result may be read."""


class Link:
    """The ranks of one group; a blocking link finishes every exchange before anything else is computed."""

    def __init__(self, group: dist.ProcessGroup | None, *, blocking: bool = False) -> None:
        self.group, self.blocking = group, blocking
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def start(self, sent: Tensor, sizes: Sequence[int] | None = None) -> Exchange:
        """Send part i of `sent`, along its first dimension, to rank i; receive as much from it.

        Parts are equal where `sizes` is None. Every rank starts the same exchanges in the same order.
        """
        exchange = Exchange(self, list(sizes) if sizes is not None else None)
        exchange.received = _Start.apply(sent, exchange)
        return exchange

    def start_gather(self, own: Tensor) -> Exchange:
        """Every rank's tensor of the same shape, […] → [ranks,…]."""
        return self.start(own.expand(self.size, *own.shape))

    def transmit(self, sent: Tensor, sizes: list[int] | None) -> tuple[Tensor, Work]:
        """Put a transfer on its way: the buffer that it fills, and what to wait for."""
        received = torch.empty_like(sent)
        return received, dist.all_to_all_single(received, sent, sizes, sizes, group=self.group, async_op=True)


class Exchange:
    """One exchange, and later its gradient's."""

    received: Tensor | None = None

    def __init__(self, link: Link, sizes: list[int] | None) -> None:
        self.link, self.sizes = link, sizes
        self.buffers: tuple[Tensor, Tensor] | None = None
        self.work: Work | None = None

    def finish(self) -> Tensor:
        """What came, shaped as what was sent; once."""
        # Kept here it would close a circle with its graph, which knows this exchange.
        received, self.received = self.received, None
        return cast("Tensor", _Finish.apply(received, self))

    def begin(self, sent: Tensor) -> Tensor:
        """Put a tensor on its way; the result is filled when `end` returns."""
        sent = sent.contiguous()
        received, self.work = self.link.transmit(sent, self.sizes)
        self.buffers = sent, received  # a buffer lives as long as it is read or written from afar
        if self.link.blocking:
            self.work.wait()
        return received

    def end(self) -> None:
        """Wait for what was begun."""
        assert self.work is not None
        self.work.wait()
        self.work = self.buffers = None


class _Start(torch.autograd.Function):
    """Begins the exchange; its backward ends the gradient's."""

    @staticmethod
    def forward(ctx: Any, sent: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.begin(sent)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.exchange.end()
        return gradient, None


class _Finish(torch.autograd.Function):
    """Ends the exchange; its backward begins the gradient's."""

    @staticmethod
    def forward(ctx: Any, received: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        exchange.end()
        return received

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.begin(gradient), None
