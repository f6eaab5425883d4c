"""A message: what a rank sends in one kind of call, how large it is, and how long its link is busy with it.

Sizes are of whole tensors: what a sum or an exchange is called with, what a gather makes, what a scatter takes. The
bytes that a rank sends for it are those of ring algorithms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from training.planning.hardware import Link

FORWARD, BACKWARD, STEP = "forward", "backward", "step"
"""In every micro-batch's forward pass, in every backward pass, or once a step."""
SENT = {
    "all_reduce": lambda n: 2 * (n - 1) / n,
    "all_gather": lambda n: (n - 1) / n,
    "reduce_scatter": lambda n: (n - 1) / n,
    "all_to_all": lambda n: (n - 1) / n,
    "send": lambda n: 1.0,
}
"""Bytes that a rank of n sends for a byte of the whole tensor; of its own tensor in an all-to-all and a send."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Message:
    """Equal collectives, or messages, of one rank."""

    purpose: str
    """tensor, sequence, halo, data, gather, pipeline or tied."""
    operation: str
    """Key of SENT."""
    when: str
    """FORWARD, BACKWARD or STEP."""
    size_bytes: float
    """Of all of them together."""
    calls: int
    ranks: int
    """Size of the group."""
    link: Link

    def times(self, count: int) -> Message:
        """So many of these."""
        return replace(self, size_bytes=count * self.size_bytes, calls=count * self.calls)

    @property
    def sent_bytes(self) -> float:
        """By one rank, with ring algorithms."""
        return self.size_bytes * SENT[self.operation](self.ranks)

    @property
    def seconds(self) -> float:
        """With nothing else on the link."""
        return self.sent_bytes / self.link.bandwidth + self.calls * self.link.latency_s


def make_message(
    purpose: str, operation: str, when: str, size_bytes: float, calls: int, ranks: int, link: Link
) -> Message:
    """A message, its fields in the order in which a table would have them."""
    return Message(
        purpose=purpose, operation=operation, when=when, size_bytes=size_bytes, calls=calls, ranks=ranks, link=link
    )
