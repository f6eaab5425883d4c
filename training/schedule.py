"""How far a run is, and what its learning rate is there: warm-up, stable, decay."""

from __future__ import annotations

import math
from dataclasses import dataclass

from training.config import ScheduleSection


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Warm-up over steps, then constant, then a line down to zero at the end of the run.

    The end is a number of steps, a number of minutes, or whichever comes first, so that a run on a lent machine
    finishes its decay however fast that machine turns out to be.
    """

    section: ScheduleSection

    def progress(self, step: int, elapsed_s: float) -> float:
        """Part of the run that is behind, 0 to 1 and beyond."""
        limits = self.section
        by_steps = step / limits.max_steps if limits.max_steps is not None else 0.0
        by_time = elapsed_s / (60 * limits.max_minutes) if limits.max_minutes is not None else 0.0
        return max(by_steps, by_time)

    def is_over(self, step: int, elapsed_s: float) -> bool:
        """Whether the run has reached its end before this step."""
        return self.progress(step, elapsed_s) >= 1

    def steps_expected(self, step: int, elapsed_s: float, step_s: float) -> float:
        """Steps of the whole run, if all that are left take `step_s` seconds."""
        limits = self.section
        by_steps = limits.max_steps if limits.max_steps is not None else math.inf
        by_time = step + (60 * limits.max_minutes - elapsed_s) / step_s if limits.max_minutes is not None else math.inf
        return min(by_steps, by_time)

    def factor(self, step: int, elapsed_s: float) -> float:
        """What the learning rates are multiplied by at this step."""
        warmup = min(1.0, (step + 1) / max(1, self.section.warmup_steps))
        left = 1 - self.progress(step, elapsed_s)
        decay = min(1.0, left / self.section.decay_fraction) if self.section.decay_fraction else 1.0
        return warmup * max(0.0, decay)
