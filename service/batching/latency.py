"""How long batches take: what queues tell clients to wait, and later policies to plan with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

SHORTEST_S = 1e-6
"""Below what any batch takes: a clock that stood still divides nothing by zero."""


class LatencyModel(Protocol):
    """Predicts a batch's duration, and learns from what batches took."""

    def predict_s(self, rows: int, tokens: int) -> float:
        """Seconds for a batch of `rows` whose sources, padding included, have `tokens` each."""

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """A batch of that shape took that long."""

    @property
    def error_ratio(self) -> float:
        """How far recent predictions were off, as a share of what the batches took; 0 before the first."""


@dataclass(slots=True)
class TokenRate:
    """Time proportional to a batch's tokens, as an exponentially weighted mean."""

    seconds_per_token: float = 1e-4
    """Start: about what the shipped model needs on two cores."""

    weight: float = 0.1
    """Of a new observation."""

    error_ratio: float = 0.0
    """How far recent predictions were off, as a share of what the batches took."""

    def predict_s(self, rows: int, tokens: int) -> float:
        """Seconds for a batch of `rows` whose sources have `tokens` each."""
        return rows * tokens * self.seconds_per_token

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """A batch of that shape took that long."""
        error = abs(self.predict_s(rows, tokens) - seconds) / max(seconds, SHORTEST_S)
        self.error_ratio += self.weight * (error - self.error_ratio)
        self.seconds_per_token += self.weight * (seconds / (rows * tokens) - self.seconds_per_token)
