"""How a batch is filled: requests of one group and one length bucket, in the order of the queue.

A batch that is ripe and does not fit the place's free capacity holds up those behind it, so that nothing starves
behind smaller requests.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any

from service.batching.pending import Pending
from service.batching.policies.policy import View

SMALLEST_BUCKET = 64
"""Padding below this length costs nothing worth splitting a batch for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A batch that could be sent."""

    requests: tuple[Pending[Any], ...]
    full: bool
    """Whether more requests would not make it larger."""

    fits: bool
    """Whether the place has room for it."""


def candidates(view: View) -> Iterator[Candidate]:
    """Batches of every group and bucket, the one whose turn is first, first."""
    lines: dict[tuple[Hashable, int], list[Pending[Any]]] = {}
    for request in view.queue:
        lines.setdefault((request.group, bucket(request.tokens, view.limits.least_filled)), []).append(request)
    for line in lines.values():
        yield _fill(line, view)


def bucket(tokens: int, least_filled: float = 0.5) -> int:
    """The length that a request is padded towards: at least `least_filled` of it is the request's own.

    Lengths grow from SMALLEST_BUCKET by 1 / least_filled: by powers of two where half may be padding.
    """
    if tokens <= SMALLEST_BUCKET:
        return SMALLEST_BUCKET
    steps = math.ceil(math.log(tokens / SMALLEST_BUCKET) / -math.log(least_filled) - 1e-9)
    return math.floor(SMALLEST_BUCKET * least_filled**-steps + 1e-9)


def _fill(line: list[Pending[Any]], view: View) -> Candidate:
    """As many of the first requests of a line as one batch and the free slots hold."""
    taken: list[Pending[Any]] = []
    longest, free = 0, view.free_slots
    for request in line:
        longest = max(longest, request.tokens)
        free -= request.slots
        if taken and (free < 0 or _is_too_large(len(taken) + 1, longest, view)):
            return Candidate(requests=tuple(taken), full=True, fits=True)
        if free < 0 and not view.idle:
            return Candidate(requests=(request,), full=True, fits=False)
        taken.append(request)
    full = free <= 0 or _is_too_large(len(taken) + 1, longest, view)
    return Candidate(requests=tuple(taken), full=full, fits=True)


def _is_too_large(rows: int, tokens: int, view: View) -> bool:
    """Whether one batch may not hold so many rows of so many tokens."""
    limits = view.limits
    return (
        rows > limits.rows
        or rows * tokens > limits.tokens
        or (limits.seconds is not None and view.latency.predict_s(rows, tokens) > limits.seconds)
    )
