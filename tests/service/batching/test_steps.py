"""Decode steps: their times by sequences and cached tokens, learnt from the engine's sums."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.triton.protocol import EngineStats, StepTotals, Task
from service.batching.steps import StepTime, StepTimes


def totals(steps: int, rows: int, cached: int) -> StepTotals:
    """Of steps that take 4 ms, 0.5 ms a sequence and 2 µs a cached token."""
    seconds = steps * (4e-3 + rows * 5e-4 + cached * 2e-6)
    return StepTotals(steps=steps, rows=steps * rows, cached_tokens=steps * cached, seconds=seconds)


def test_steps_are_learnt_from_the_engines_sums_by_sequences_and_cached_tokens() -> None:
    model, sums, rng = StepTime(), StepTotals(), np.random.default_rng(0)
    for _ in range(100):
        sums += totals(int(rng.integers(1, 12)), int(rng.integers(1, 33)), int(rng.integers(10, 9000)))
        model.learn(sums)
    for rows, cached in [(1, 20), (8, 1000), (32, 8000)]:
        assert model.predict_s(rows, cached) == pytest.approx(totals(1, rows, cached).seconds, rel=0.05)
    assert model.error_ratio < 0.05


def test_another_engine_begins_its_sums_anew() -> None:
    model = StepTime()
    model.learn(totals(1000, 2, 100))
    before = model.predict_s(2, 100)
    model.learn(totals(1, 30, 9000))
    assert model.predict_s(2, 100) == before
    model.learn(totals(1, 30, 9000) + totals(20, 4, 300))
    assert model.predict_s(4, 300) == pytest.approx(totals(1, 4, 300).seconds, rel=0.3)


def test_each_decoder_has_a_model_of_its_own() -> None:
    model = StepTimes()
    sums = StepTotals()
    for _ in range(100):
        sums += StepTotals(steps=100, rows=100, cached_tokens=3000, seconds=3.0)
        none = StepTotals()
        model.learn(EngineStats(slots_used=1, slots_total=4, waiting_rows=0, generation_steps=none, summary_steps=sums))
    assert model.predict_s(1, 30, Task.SUMMARY) == pytest.approx(0.03, rel=0.1)
    assert model.predict_s(1, 30) == StepTime().predict_s(1, 30)
    assert model.error_ratio == model.summary.error_ratio > 0


def test_the_pace_is_the_time_of_answers_over_that_of_the_steps_that_ran_meanwhile() -> None:
    model, ran = StepTimes(), totals(40, 3, 300)
    for _ in range(100):
        model.learn_pace(2.5 * ran.seconds, ran)
    assert model.pace == pytest.approx(2.5, rel=0.01)
    model.learn_pace(100.0, totals(2, 3, 300))
    assert model.pace == pytest.approx(2.5, rel=0.01), "two steps tell nothing"
    for _ in range(100):
        model.learn_pace(0.5 * ran.seconds, ran)
    assert model.pace >= 1.0, "no answer is there before its steps have run"
