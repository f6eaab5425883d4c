"""What a policy sees and what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from service.batching.decoding import Decoding
from service.batching.forecast import Forecast
from service.batching.latency import LatencyModel
from service.batching.pending import Pending, RunningBatch
from service.batching.queue import RequestQueue
from service.errors import ServiceError


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLimits:
    """The largest batch."""

    rows: int
    tokens: int
    """Padding included; a single longer request goes alone."""

    seconds: float | None = None
    """Predicted, where something else could have to wait for it; a single longer request goes alone. None: any."""

    least_filled: float = 0.5
    """Requests share a batch only where each is at least about this share of the longest, the shortest aside."""

    def of_at_most(self, tokens: int | None) -> BatchLimits:
        """The same, for a place that takes no more tokens at once; None is no limit of its own."""
        return self if tokens is None or tokens >= self.tokens else replace(self, tokens=tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What a policy decides on: the queue, and one place that could take the next batch."""

    queue: RequestQueue[Any]
    """Its order is fair between flows: a policy that keeps to it is fair."""

    now_s: float
    forecast: Forecast
    """Of requests to this lane."""

    free_slots: int
    """What the place can take now."""

    elsewhere: bool
    """Whether another place could take what this one does not."""

    idle: bool
    """Nothing runs there: a request that needs more slots than there are may go, alone."""

    limits: BatchLimits
    latency: LatencyModel
    """Of batches at this place."""

    decoding: Decoding
    """What is written at this place; nothing in a lane whose requests are answered in one pass."""

    running: Sequence[RunningBatch[Any]]
    """Batches that were sent there and have not come back, the oldest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What to send now, or when to ask again."""

    batch: tuple[Pending[Any], ...] = ()
    refused: tuple[tuple[Pending[Any], ServiceError], ...] = ()
    """Requests that wait in vain, and what they are told."""

    look_again_s: float | None = None
    """Without a batch: when to ask again although nothing has come or gone; None is never."""


class Policy(Protocol):
    """Asked at submission, and whenever requests come, leave, start or finish, and at the time it named."""

    def admit(self, request: Pending[Any], view: View) -> ServiceError | None:
        """Whether a request may wait at all: None, or what it is refused with. `view` is of the emptiest place.

        Everybody may, unless a policy says otherwise: the queue's bound is all there is then.
        """
        return None

    def decide(self, view: View) -> Decision:
        """The next batch for a place, if one should go now."""
