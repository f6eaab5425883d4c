"""Which waiting requests make the next batch, and when it goes.

Batches hold requests of one group and of one length bucket, in the order of their arrival: at most half of a batch is
padding. A batch that is ripe and does not fit the model's free capacity holds up those behind it, so that nothing
starves behind smaller requests.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from service.batching.latency import LatencyModel
from service.batching.queue import Pending, RequestQueue

SMALLEST_BUCKET = 64
"""Padding below this length costs nothing worth splitting a batch for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchLimits:
    """The largest batch."""

    rows: int
    tokens: int
    """Padding included; a single longer request goes alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What a policy decides on."""

    queue: RequestQueue[Any]
    now_s: float
    free_slots: int
    """What the model can take now."""

    idle: bool
    """Nothing runs: a request that needs more slots than there are may go, alone."""

    limits: BatchLimits
    latency: LatencyModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What to send now, or when to ask again."""

    batch: tuple[Pending[Any], ...] = ()
    look_again_s: float | None = None
    """Without a batch: when to ask again although nothing has come or gone; None is never."""


class Policy(Protocol):
    """Decides whenever requests come, leave or finish, and at the time it named."""

    def decide(self, view: View) -> Decision:
        """The next batch, if one should go now."""


class Immediate:
    """Sends what there is as soon as the model has room."""

    def decide(self, view: View) -> Decision:
        """The oldest request and those that fit to it."""
        for candidate in candidates(view):
            return Decision(batch=candidate.requests if candidate.fits else ())
        return Decision()


@dataclass(frozen=True, slots=True)
class Dynamic:
    """Sends a batch when it is full or its oldest request has waited long enough."""

    max_delay_s: float

    def decide(self, view: View) -> Decision:
        """The first batch that is ripe."""
        look_again_s: float | None = None
        for candidate in candidates(view):
            ripe_s = candidate.requests[0].arrived_s + self.max_delay_s
            if candidate.full or ripe_s <= view.now_s:
                # What does not fit holds up those behind it, not the older ones that were not ripe yet.
                return Decision(batch=candidate.requests) if candidate.fits else Decision(look_again_s=look_again_s)
            look_again_s = ripe_s if look_again_s is None else min(look_again_s, ripe_s)
        return Decision(look_again_s=look_again_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A batch that could be sent."""

    requests: tuple[Pending[Any], ...]
    full: bool
    """Whether more requests would not make it larger."""

    fits: bool
    """Whether the model has room for it."""


def candidates(view: View) -> Iterator[Candidate]:
    """Batches of every group and bucket, the one with the oldest request first."""
    lines: dict[tuple[Hashable, int], list[Pending[Any]]] = {}
    for request in view.queue:
        lines.setdefault((request.group, bucket(request.tokens)), []).append(request)
    for line in lines.values():
        yield _fill(line, view)


def bucket(tokens: int) -> int:
    """The power of two that a length is padded towards."""
    return max(SMALLEST_BUCKET, 1 << (tokens - 1).bit_length())


def _fill(line: list[Pending[Any]], view: View) -> Candidate:
    """As many of the oldest requests of a line as one batch and the free slots hold."""
    taken: list[Pending[Any]] = []
    longest, free = 0, view.free_slots
    for request in line:
        longest = max(longest, request.tokens)
        free -= request.slots
        rows = len(taken) + 1
        if taken and (rows > view.limits.rows or rows * longest > view.limits.tokens or free < 0):
            return Candidate(requests=tuple(taken), full=True, fits=True)
        if free < 0 and not view.idle:
            return Candidate(requests=(request,), full=True, fits=False)
        taken.append(request)
    rows = len(taken)
    full = rows == view.limits.rows or (rows + 1) * longest > view.limits.tokens or free <= 0
    return Candidate(requests=tuple(taken), full=full, fits=True)


def make_policy(name: str, max_delay_s: float) -> Policy:
    """The policy of that name. Raises ValueError for an unknown one."""
    if name == "immediate":
        return Immediate()
    if name == "dynamic":
        return Dynamic(max_delay_s)
    raise ValueError(f"there is no batching policy {name!r}: choose immediate or dynamic")
