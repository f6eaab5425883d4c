"""How long batches take: what queues tell clients to wait, and later policies to plan with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class LatencyModel(Protocol):
    """Predicts a batch's duration, and learns from what batches took."""

    def predict_s(self, rows: int, tokens: int) -> float:
        """Seconds for a batch of `rows` whose sources, padding included, have `tokens` each."""

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """A batch of that shape took that long."""


@dataclass(slots=True)
class TokenRate:
    """Time proportional to a batch's tokens, as an exponentially weighted mean."""

    seconds_per_token: float = 1e-4
    """Start: about what the shipped model needs on two cores."""

    weight: float = 0.1
    """Of a new observation."""

    def predict_s(self, rows: int, tokens: int) -> float:
        """Seconds for a batch of `rows` whose sources have `tokens` each."""
        return rows * tokens * self.seconds_per_token

    def observe(self, rows: int, tokens: int, seconds: float) -> None:
        """A batch of that shape took that long."""
        self.seconds_per_token += self.weight * (seconds / (rows * tokens) - self.seconds_per_token)
