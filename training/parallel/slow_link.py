"""A link slowed on purpose, to see which transfers computation hides.

The transfer itself is the group's own. A courier thread waits for it, and reckons when it would have come over the slow
link; whoever waits for it sleeps until then, and the time spent waiting is noted:

    arrival = max(real completion, link free) + bytes / bandwidth + delay

Waiting falls into two: for ranks that hand over later than this one, up to the real completion, and for the link.
A transfer needs its whole delay after the last rank has handed it over, transfers share the bandwidth in the order
of their start, and delays run side by side. No core is used while a transfer is on its way.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor

from training.parallel.link import Link, Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Slowness:
    """What a link costs."""

    delay_s: float = 0.0
    """Of every transfer, whatever its size."""
    bytes_per_s: float = float("inf")
    """What a rank sends to the others; its own part stays."""


class SlowLink(Link):
    """A group's link, slowed; counts what is sent and how long the process stood still for it."""

    def __init__(self, group: dist.ProcessGroup | None, slowness: Slowness, *, blocking: bool) -> None:
        super().__init__(group, blocking=blocking)
        self.slowness = slowness
        self.courier = ThreadPoolExecutor(max_workers=1, thread_name_prefix="courier")
        self.free_at_s = 0.0
        self.reset()

    def reset(self) -> None:
        """Start counting anew."""
        self.transfers = self.bytes = 0
        self.waited_s = self.waited_for_ranks_s = 0.0

    def transmit(self, sent: Tensor, sizes: list[int] | None) -> tuple[Tensor, Work]:
        """As the group does it, and later."""
        received, work = super().transmit(sent, sizes)
        travelling = sent.nbytes * (self.size - 1) // self.size if sizes is None else sent.nbytes
        self.transfers += 1
        self.bytes += travelling
        return received, _Delivery(self, self.courier.submit(self._times_s, work, travelling))

    def _times_s(self, work: Work, travelling: int) -> tuple[float, float]:
        """Real completion, and arrival."""
        work.wait()
        complete_s = time.perf_counter()
        self.free_at_s = max(complete_s, self.free_at_s) + travelling / self.slowness.bytes_per_s
        return complete_s, self.free_at_s + self.slowness.delay_s

    def close(self) -> None:
        """End the courier."""
        self.courier.shutdown()


class _Delivery:
    """A transfer on its way over a slow link."""

    def __init__(self, link: SlowLink, times_s: Future[tuple[float, float]]) -> None:
        self.link, self.times_s = link, times_s

    def wait(self) -> None:
        begin_s = time.perf_counter()
        complete_s, arrival_s = self.times_s.result()
        left_s = arrival_s - time.perf_counter()
        if left_s > 0:
            time.sleep(left_s)
        self.link.waited_for_ranks_s += max(0.0, complete_s - begin_s)
        self.link.waited_s += time.perf_counter() - begin_s
