"""How long batches and decode steps take, learnt from what the models report: what policies plan with."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from deploy.triton.protocol import EngineStats, StepTotals

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


@dataclass(slots=True)
class StepRate:
    """Seconds of a decode step at one place, as an exponentially weighted mean over its steps of late."""

    seconds_per_step: float = 0.0
    """0 before the first observation."""

    weight: float = 0.1
    """Of a new observation."""

    error_ratio: float = 0.0
    """How far recent predictions were off, as a share of what the steps took."""

    _seen: tuple[StepTotals, StepTotals] = field(default=(StepTotals(), StepTotals()), repr=False)

    def learn(self, stats: EngineStats) -> None:
        """The engine's account of its steps, which are sums since its start: the news is what they have grown by."""
        seen, self._seen = self._seen, (stats.generation_steps, stats.summary_steps)
        for now, before in zip(self._seen, seen, strict=True):
            ran = now - before
            # Fewer than before: another engine, whose sums begin anew.
            if ran.steps > 0 and ran.seconds > 0:
                self.observe(ran.seconds / ran.steps)

    def observe(self, seconds: float) -> None:
        """Steps took that long each."""
        if self.seconds_per_step:
            error = abs(self.seconds_per_step - seconds) / max(seconds, SHORTEST_S)
            self.error_ratio += self.weight * (error - self.error_ratio)
        weight = self.weight if self.seconds_per_step else 1.0
        self.seconds_per_step += weight * (seconds - self.seconds_per_step)
