"""What waits, by group, class of service and length: lines, each in the order in which its requests are due.

A request is due at its deadline, or some seconds after it came where that is earlier; later if its class has patience,
and if it stands behind others of the same client. So a book of a thousand windows is overtaken by a question of one,
for a bounded time: what is past due has its turn (policies/predictive.py).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from service.batching.pending import Pending

SHORTEST = 16
"""Tokens below which lengths are not told apart."""

FILLED = 0.8
"""Requests of one line have at least this share of its longest. Values from 0.8 to 0.97 serve as many in time."""

LOOKED_AT = 64
"""Requests of a line that a decision looks at: twice the largest batch. 128 serve no more in time."""

SOON_S = 2.0
"""A request without a near deadline is due so long after it came."""

PACE = 4000.0
"""Tokens a second at which what one client asks for is due: a window of 400 is due 0.1 s after the one before it."""

FIELDS = ("due_s", "deadline_s", "tokens", "weight", "slots")
"""Of a request, that decisions look at."""

ANSWER_FIELDS = ("least", "likely", "most")
"""Of its answer, where one is written."""

ROOM = 32
"""Requests that a line holds at first."""


@lru_cache(maxsize=8192)
def length_class(tokens: int) -> int:
    """The line of that length: 0 for the shortest."""
    if tokens <= SHORTEST:
        return 0
    return math.ceil(math.log(tokens / SHORTEST) / -math.log(FILLED) - 1e-9)


def due_s(request: Pending[Any], behind: float) -> float:
    """When a request that has come is due; `behind`: tokens that its client asked for before and has not had."""
    soon_s = min(request.deadline_s, request.arrived_s + SOON_S)
    return soon_s + behind / PACE + request.tier.patience_s


class Line:
    """Requests of one class of service and about one length, in the order in which they are due."""

    __slots__ = ("_table", "requests")

    def __init__(self) -> None:
        self.requests: list[Pending[Any]] = []
        self._table = np.empty((len(FIELDS) + len(ANSWER_FIELDS), ROOM))
        """FP64 [8, room]: a column a request, so that decisions read it as it stands."""

    @property
    def columns(self) -> np.ndarray:
        """FP64 [5, requests looked at]: FIELDS of each. Stands until the line changes."""
        return self._table[: len(FIELDS), : min(len(self.requests), LOOKED_AT)]

    @property
    def answers(self) -> np.ndarray:
        """FP64 [3, requests looked at]: ANSWER_FIELDS of each; likewise."""
        return self._table[len(FIELDS) :, : min(len(self.requests), LOOKED_AT)]

    def add(self, request: Pending[Any]) -> None:
        """Put a request where it belongs, behind those that are due at the same time."""
        count = len(self.requests)
        if count == self._table.shape[1]:
            self._table = np.concatenate((self._table, np.empty_like(self._table)), axis=1)
        index = int(self._table[0, :count].searchsorted(request.due_s, "right"))
        if index < count:
            self._table[:, index + 1 : count + 1] = self._table[:, index:count]
        self._table[:, index] = (
            request.due_s,
            request.deadline_s,
            request.tokens,
            request.tier.weight,
            request.slots,
            request.answer.least,
            request.answer.likely,
            request.answer.most,
        )
        self.requests.insert(index, request)

    def remove(self, request: Pending[Any]) -> None:
        """Take a request out."""
        count = len(self.requests)
        first = int(self._table[0, :count].searchsorted(request.due_s))
        index = self.requests.index(request, first)
        self._table[:, index : count - 1] = self._table[:, index + 1 : count]
        del self.requests[index]


class Lines:
    """All lines of a queue."""

    def __init__(self) -> None:
        self._groups: dict[Hashable, dict[tuple[float, int], Line]] = {}

    def __iter__(self) -> Iterator[list[Line]]:
        """The lines of each group: of one class of service after the other, and in each the longest requests first."""
        for lines in self._groups.values():
            yield [lines[number] for number in sorted(lines, reverse=True)]

    def add(self, request: Pending[Any], behind: float) -> None:
        """A request waits, behind so many tokens of its own client."""
        request.due_s = due_s(request, behind)
        self._groups.setdefault(request.group, {}).setdefault(_number(request), Line()).add(request)

    def remove(self, request: Pending[Any]) -> None:
        """It does not wait any more."""
        lines, number = self._groups[request.group], _number(request)
        lines[number].remove(request)
        if not lines[number].requests:
            del lines[number]
            if not lines:
                del self._groups[request.group]


def _number(request: Pending[Any]) -> tuple[float, int]:
    """Where a request's line stands."""
    return request.tier.weight, length_class(request.tokens)
