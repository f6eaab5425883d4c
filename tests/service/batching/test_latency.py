"""The latency models learn what batches and steps take, follow a machine that changes, and know how far they are off."""

from __future__ import annotations

import asyncio
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.triton.protocol import EngineStats, StepTotals, Task
from service.batching.clock import LoopClock
from service.batching.latency import BatchTime
from service.batching.simulation.costs import NAMED, Costs
from service.batching.steps import StepTime, StepTimes

SHAPES = [(1, 16), (1, 64), (2, 100), (4, 64), (1, 512), (8, 128), (16, 64), (2, 384), (32, 32), (3, 256), (1, 1024)]


def teach(model: BatchTime, costs: Costs, batches: int) -> None:
    for number in range(batches):
        rows, tokens = SHAPES[number % len(SHAPES)]
        model.observe(rows, tokens, costs.predict_s(rows, tokens))


def worst_error(model: BatchTime, costs: Costs) -> float:
    return max(abs(model.predict_s(*shape) / costs.predict_s(*shape) - 1) for shape in SHAPES)


@pytest.mark.parametrize("costs", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("factor", [1 / 3, 1, 3])
def test_a_machine_is_learnt_and_followed_when_it_changes(costs: Costs, factor: float) -> None:
    model = BatchTime()
    teach(model, costs, 100)
    assert worst_error(model, costs) < 0.03
    teach(model, costs.times(factor), 100)
    assert worst_error(model, costs.times(factor)) < 0.15
    assert model.error_ratio < 0.05


OBSERVATIONS = st.lists(
    st.tuples(st.integers(1, 64), st.integers(1, 4096), st.floats(0, 1e4) | st.just(math.nan)), max_size=40
)


@given(OBSERVATIONS)
def test_whatever_is_reported_predictions_are_positive_and_grow_with_rows_and_tokens(
    observations: list[tuple[int, int, float]],
) -> None:
    model = BatchTime()
    for observation in observations:
        model.observe(*observation)
    table = model.table_s(np.arange(1, 33)[:, None], np.array([1, 16, 128, 512, 2048]))
    assert np.isfinite(table).all()
    assert (table >= 0).all()
    assert (np.diff(table, axis=0) >= 0).all()
    assert (np.diff(table, axis=1) >= 0).all()


def test_shapes_that_are_all_alike_leave_the_others_as_they_were() -> None:
    model, costs = BatchTime(), NAMED["cpu"]
    teach(model, costs, 100)
    for _ in range(5000):
        model.observe(4, 64, costs.predict_s(4, 64))
    assert worst_error(model, costs) < 0.1


def test_one_stall_is_not_a_new_machine() -> None:
    model, costs = BatchTime(), NAMED["cpu"]
    teach(model, costs, 100)
    model.observe(1, 16, 30.0)
    assert worst_error(model, costs) < 0.25


def test_a_clock_that_stands_still_breaks_nothing() -> None:
    model = BatchTime()
    for _ in range(200):
        model.observe(1, 1, 0.0)
    assert 0 < model.predict_s(4, 64) < 1
    teach(model, NAMED["cpu"], 100)
    assert worst_error(model, NAMED["cpu"]) < 0.1


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
    slow = StepTotals(steps=100, rows=100, cached_tokens=3000, seconds=30.0)
    for times in range(1, 60):
        sums = StepTotals(steps=100 * times, rows=100 * times, cached_tokens=3000 * times, seconds=30.0 * times)
        model.learn(EngineStats(slots_used=1, slots_total=4, waiting_rows=0, summary_steps=sums))
    assert model.predict_s(1, 30, Task.SUMMARY) == pytest.approx(slow.seconds / 100, rel=0.1)
    assert model.predict_s(1, 30) == StepTime().predict_s(1, 30)
    assert model.error_ratio == model.summary.error_ratio > 0


@pytest.mark.parametrize("state", [[], [[1.0]], [[1.0] * 4] * 5, [[math.nan] * 4] * 6, [[-1.0] * 4] * 6])
def test_a_state_that_is_none_is_refused_and_changes_nothing(state: list[list[float]]) -> None:
    model = BatchTime()
    before = model.coefficients
    with pytest.raises(ValueError, match="fit"):
        model.restore(state)
    assert model.coefficients == before


def test_a_restored_model_predicts_and_learns_as_the_one_before() -> None:
    old, new = BatchTime(), BatchTime()
    teach(old, NAMED["cpu"], 50)
    new.restore(old.state())
    for model in (old, new):
        model.observe(3, 77, 0.123)
    assert new.coefficients == old.coefficients


async def test_the_loops_clock_calls_back_at_its_time_and_forgets_on_demand() -> None:
    clock, calls = LoopClock(), []
    done = asyncio.Event()
    start_s = clock.now_s()
    forgotten = clock.call_at(start_s + 0.01, lambda: calls.append("forgotten"))
    clock.call_at(start_s + 0.02, done.set)
    clock.call_at(start_s - 1, lambda: calls.append("over"))
    forgotten.cancel()
    await done.wait()
    assert calls == ["over"]
    assert clock.now_s() - start_s >= 0.019
