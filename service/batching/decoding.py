"""How long answers take to write at one place, beside what is written there already.

A token comes with every step of its decoder, and the engine's two decoders take turns:

    time between two tokens = pace · Σ over decoders (a + b·rows + c·cached tokens)

so an answer that joins makes every other one slower by its own b and c.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deploy.triton.protocol import EngineStats, Task
from service.batching.fit import SHORTEST_S
from service.batching.lengths import EXPECTED
from service.batching.pending import Pending
from service.batching.steps import StepTimes

DECODERS = (Task.GENERATION, Task.SUMMARY)
NOT_BEGUN = 1 << 60
LEAST_LEFT = 0.25
"""Share of an answer that is still to come, however much has come."""


@dataclass(slots=True)
class Decoding:
    """The answers that are written at one place, or will be as soon as their sources are encoded."""

    steps: StepTimes
    writing: dict[Pending[Any], None] = field(default_factory=dict)
    rows: dict[Task, int] = field(default_factory=lambda: dict.fromkeys(DECODERS, 0))
    """Sequences of each decoder."""

    cached_tokens: dict[Task, float] = field(default_factory=lambda: dict.fromkeys(DECODERS, 0.0))
    """That these look back at, in the middle of their answers."""

    made: dict[Task, int] = field(default_factory=lambda: dict.fromkeys(DECODERS, 0))
    """Steps of each decoder since the engine's start."""

    def learn(self, stats: EngineStats) -> None:
        """The engine's account of its steps."""
        self.steps.learn(stats)
        self.made = {Task.GENERATION: stats.generation_steps.steps, Task.SUMMARY: stats.summary_steps.steps}

    def add(self, request: Pending[Any]) -> None:
        """A request was sent there."""
        if request.answer.likely:
            self.writing[request] = None
            self._change(request, 1)
            request.begun_at_step = NOT_BEGUN

    def begin(self, request: Pending[Any]) -> None:
        """Its source has been encoded."""
        request.begun_at_step = self.made[decoder(request.group)]

    def remove(self, request: Pending[Any]) -> None:
        """It is not written any more."""
        if request.answer.likely:
            del self.writing[request]
            self._change(request, -1)

    def token_s(self) -> float:
        """Seconds between two tokens of an answer."""
        steps_s = (
            self.steps.predict_s(rows, self.cached_tokens[task], task) for task, rows in self.rows.items() if rows
        )
        return self.steps.pace * sum(steps_s)

    def token_s_of(self, group: Hashable, tokens: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """The same for answers of so many tokens to such sources, each as the next one to join: FP64."""
        task = decoder(group)
        step_s = 0.0 if self.rows[task] else self.steps.of(task).coefficients[0]
        seconds: np.ndarray = self.token_s() + self.steps.pace * (step_s + self.added_s(group, tokens, answers))
        return seconds

    def added_s(self, group: Hashable, tokens: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """By how much each such answer makes every step longer: FP64."""
        _, row_s, cached_s = self.steps.of(decoder(group)).coefficients
        seconds: np.ndarray = row_s + cached_s * (tokens + answers / 2)
        return seconds

    def least_s(self, group: Hashable, tokens: np.ndarray, answers: np.ndarray) -> np.ndarray:
        """Seconds to write each with the machine for itself: FP64."""
        step_s = self.steps.of(decoder(group)).coefficients[0]
        seconds: np.ndarray = answers * (step_s + self.added_s(group, tokens, answers))
        return seconds

    def price(self, now_s: float) -> float:
        """What it costs that steps become longer, by the second: the weight of each answer that is written, times by
        how much less likely it is to be in time with one row more in every step.

        For each of them one is counted that is sent now: whoever ends is followed by somebody like him.
        """
        added_s = self.steps.pace * self.steps.generation.coefficients[1]
        if not self.writing or added_s <= 0:
            return 0.0
        token_s = max(self.token_s(), SHORTEST_S)
        written_R = np.array([self.made[decoder(each.group)] - each.begun_at_step for each in self.writing]).clip(0)
        whole_3R = np.array([each.answer for each in self.writing], float).T
        # What has come so far tells that it is no short answer: there is always something left.
        left_3R = np.maximum(whole_3R - written_R, whole_3R * LEAST_LEFT)
        times_2R = np.array([(each.deadline_s - now_s, each.deadline_s - each.sent_s) for each in self.writing]).T
        weights_R = np.array([each.tier.weight for each in self.writing])
        lost_2R = [
            in_time(time_R / token_s, tokens_3R) - in_time(time_R / (token_s + added_s), tokens_3R)
            for time_R, tokens_3R in zip(times_2R, (left_3R, whole_3R), strict=True)
        ]
        return float(sum(lost_2R) @ weights_R) * self.steps.pace / added_s

    def _change(self, request: Pending[Any], sign: int) -> None:
        task = decoder(request.group)
        self.rows[task] += sign * request.slots
        self.cached_tokens[task] += sign * request.slots * (request.tokens + request.answer.likely / 2)


def in_time(tokens_R: np.ndarray, expected_3R: np.ndarray) -> np.ndarray:
    """P(an answer has no more than so many tokens), FP64 [R], from its EXPECTED quantiles: straight lines between them,
    and nothing beyond the last."""
    least_R, likely_R, most_R = expected_3R
    low, middle, _ = EXPECTED
    below_R = (tokens_R - least_R) / np.maximum(likely_R - least_R, 1)
    above_R = (tokens_R - likely_R) / np.maximum(most_R - likely_R, 1)
    share_R: np.ndarray = (
        np.where(tokens_R >= least_R, low, 0.0)
        + (middle - low) * below_R.clip(0, 1)
        + (1 - middle) * above_R.clip(0, 1)
    )
    return share_R


def decoder(group: Hashable) -> Task:
    """Whose steps write a group's answers; a row that is to be routed is most likely to be generated from."""
    return Task.SUMMARY if group is Task.SUMMARY else Task.GENERATION
