"""When requests came, and how large they were: what a forecast is made from."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

REMEMBERED = 1024
"""Arrivals that are kept: seconds of a busy service, minutes of a quiet one."""


class Arrival(NamedTuple):
    """One request's coming."""

    at_s: float
    tokens: int


@dataclass(slots=True)
class Arrivals:
    """The latest arrivals at one lane, the oldest first; refused ones count, for they came too."""

    latest: deque[Arrival] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def record(self, at_s: float, tokens: int) -> None:
        """A request came."""
        self.latest.append(Arrival(at_s, tokens))
