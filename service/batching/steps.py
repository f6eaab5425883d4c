"""How long decode steps take at one place, by what they decode: learnt from the engine's account of its steps.

`t(n, C) = a + b·n + c·C` of n sequences that hold C tokens in the cache together: the weights are read once a step,
products grow with sequences, attention with what it looks back at. Means over several steps obey the same formula, so
nothing is lost where the engine tells of them together. Each decoder has a model of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from deploy.triton.protocol import EngineStats, StepTotals, Task
from service.batching.fit import SHORTEST_S, NonNegativeFit
from service.batching.latency import ERROR_WEIGHT

START = (5e-3, 5e-4, 1e-6)
"""About what the shipped model needs on two cores."""

STEPS_TOGETHER = 4
LEAST_S = 0.05
"""What has run is looked at once it is that many steps or seconds: learning from each step would cost 1 % of them."""

SLOWEST_PACE = 8.0
"""An engine that was stopped for a while is no slow one."""


class StepTime:
    """Seconds of a step of one decoder."""

    def __init__(self, start: tuple[float, float, float] = START) -> None:
        """`start`: a, b, c in seconds."""
        self._fit = NonNegativeFit(start)
        self._seen = StepTotals()
        self.error_ratio = 0.0
        """How far recent predictions were off, as a share of what the steps took."""

    def predict_s(self, rows: float, cached_tokens: float) -> float:
        """Seconds of a step of so many sequences that hold so many tokens together."""
        return self._fit.predict((1.0, rows, cached_tokens))

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """Seconds of a step, of each sequence in it, and of each token that is looked back at."""
        a, b, c = self._fit.coefficients
        return a, b, c

    def learn(self, totals: StepTotals) -> None:
        """The engine's sums since its start: the news is what they have grown by."""
        ran = totals - self._seen
        if 0 <= ran.steps < STEPS_TOGETHER and 0 <= ran.seconds < LEAST_S:
            return
        self._seen = totals
        # Fewer than before: another engine, whose sums begin anew.
        if ran.steps > 0 and 0 < ran.seconds < math.inf:
            self.observe(ran.rows / ran.steps, ran.cached_tokens / ran.steps, ran.seconds / ran.steps)

    def observe(self, rows: float, cached_tokens: float, seconds: float) -> None:
        """Steps of so many sequences and tokens took that long each."""
        error = abs(self.predict_s(rows, cached_tokens) - seconds) / max(seconds, SHORTEST_S)
        self.error_ratio += ERROR_WEIGHT * (error - self.error_ratio)
        self._fit.observe((1.0, rows, cached_tokens), seconds)

    def state(self) -> list[list[float]]:
        """What it has learnt."""
        return self._fit.state()

    def restore(self, state: Sequence[Sequence[float]]) -> None:
        """Go on from what another has learnt. Raises ValueError where it is no such thing."""
        self._fit.restore(state)


@dataclass(slots=True)
class StepTimes:
    """Steps of both decoders at one place."""

    generation: StepTime = field(default_factory=StepTime)
    summary: StepTime = field(default_factory=StepTime)
    pace: float = 1.0
    """Time of an answer between its first token and its last, over that of the steps which ran meanwhile: beside
    sources that are encoded, steps are held back."""

    def of(self, task: Task) -> StepTime:
        """The model of a task's decoder; a row that is to be routed is most likely to be generated from."""
        return self.summary if task is Task.SUMMARY else self.generation

    def predict_s(self, rows: float, cached_tokens: float, task: Task = Task.GENERATION) -> float:
        """Seconds of a step of a task's decoder."""
        return self.of(task).predict_s(rows, cached_tokens)

    def learn(self, stats: EngineStats) -> None:
        """The engine's account of its steps."""
        self.generation.learn(stats.generation_steps)
        self.summary.learn(stats.summary_steps)

    def learn_pace(self, seconds: float, ran: StepTotals) -> None:
        """An answer took so long to write, while these steps of both decoders ran."""
        if ran.steps >= STEPS_TOGETHER and 0 < ran.seconds < math.inf:
            pace = min(max(1.0, seconds / ran.seconds), SLOWEST_PACE)
            self.pace += ERROR_WEIGHT * (pace - self.pace)

    @property
    def error_ratio(self) -> float:
        """Of the decoder whose predictions are worse."""
        return max(self.generation.error_ratio, self.summary.error_ratio)

    def state(self) -> dict[str, list[list[float]]]:
        """What they have learnt."""
        return {"generation": self.generation.state(), "summary": self.summary.state()}

    def restore(self, state: Mapping[str, Sequence[Sequence[float]]]) -> None:
        """Go on from what others have learnt. Raises ValueError where it is no such thing."""
        self.generation.restore(state["generation"])
        self.summary.restore(state["summary"])
