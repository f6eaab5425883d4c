"""What all systems are asked: a trace's lengths and arrivals, at any load, and one set of deadlines for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.benchmark.arrivals import read_trace
from deploy.benchmark.questions import SizedQuestions
from deploy.benchmark.replay import Schedule

PATIENCE = 5.0
SHORTEST_DEADLINE_S = 0.05
CAP = 512


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shape:
    """Lengths and arrivals, before anything is measured."""

    source: str
    """The trace's name, or how they were drawn."""

    offsets_s: np.ndarray
    """FP64 [R], from 0 on, as recorded."""

    tokens: np.ndarray
    """INT [R], of sources."""

    def first(self, requests: int) -> Shape:
        """So many of them."""
        return Shape(source=self.source, offsets_s=self.offsets_s[:requests], tokens=self.tokens[:requests])


def shape_of(trace: Path | None, requests: int, questions: SizedQuestions, seed: int) -> Shape:
    """The first requests of a trace; without one, Poisson arrivals of lengths that are as skewed as a chat's are."""
    if trace is not None:
        recorded = read_trace(trace, lengths=True, first=requests)
        tokens = questions.fitted(recorded.source_tokens, CAP)
        return Shape(source=trace.name, offsets_s=recorded.offsets_s, tokens=tokens)
    generator = np.random.default_rng(seed)
    offsets_s = generator.exponential(1.0, requests).cumsum()
    tokens = questions.fitted(generator.lognormal(5.0, 0.9, requests).astype(int), CAP)
    return Shape(source="drawn", offsets_s=offsets_s - offsets_s[0], tokens=tokens)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Asked:
    """A shape's requests with deadlines, and what they amount to."""

    shape: Shape
    bodies: Sequence[bytes]
    patience_s: np.ndarray
    """FP64 [R]: five times what the request takes alone, 50 ms at least."""

    work_s: np.ndarray
    """FP64 [R]: what load 1.0 is, a request's share of its batch where raw ONNX Runtime takes all in batches
    sorted by length."""

    @property
    def capacity_per_s(self) -> float:
        """Requests a second at load 1.0."""
        return len(self.bodies) / float(self.work_s.sum())

    def first(self, requests: int) -> Asked:
        """So many of them."""
        return Asked(
            shape=self.shape.first(requests),
            bodies=self.bodies[:requests],
            patience_s=self.patience_s[:requests],
            work_s=self.work_s[:requests],
        )

    def at(self, load: float) -> Schedule:
        """The requests at a load."""
        span_s = float(self.work_s.sum()) / load
        arrivals_s = self.shape.offsets_s / max(float(self.shape.offsets_s[-1]), 1e-9) * span_s
        return Schedule(arrivals_s=arrivals_s, patience_s=self.patience_s, bodies=self.bodies)

    def compression(self, load: float) -> float:
        """By how much a load plays the trace faster than it was recorded."""
        return float(self.shape.offsets_s[-1]) * load / float(self.work_s.sum())


def patience_s(alone_s: np.ndarray) -> np.ndarray:
    """Deadlines, from what requests take alone: FP64 [R]."""
    return np.maximum(PATIENCE * alone_s, SHORTEST_DEADLINE_S)
