"""Latency models learn what batches take, and know how far they are off; the loop's clock keeps time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.clock import LoopClock
from service.batching.latency import BatchTime
from service.batching.simulation.costs import NAMED, Costs

SHAPES = st.lists(st.tuples(st.integers(1, 32), st.integers(1, 2048)), min_size=100, max_size=150)
SOME = [(1, 30), (4, 200), (1, 512), (8, 384), (2, 64), (16, 128), (32, 512), (3, 480)]


def off_by(model: BatchTime, truth: Costs) -> float:
    """The largest relative error over some shapes."""
    return max(abs(model.predict_s(*shape) / truth.predict_s(*shape) - 1) for shape in SOME)


def learn(model: BatchTime, truth: Callable[[int, int], float], batches: int) -> None:
    generator = np.random.default_rng(3)
    for _ in range(batches):
        rows, tokens = int(generator.integers(1, 33)), int(generator.integers(8, 513))
        model.observe(rows, tokens, truth(rows, tokens))


@pytest.mark.parametrize("truth", NAMED.values(), ids=NAMED)
def test_a_machine_is_learnt_and_the_error_fades(truth: Costs) -> None:
    model = BatchTime()
    learn(model, truth.predict_s, 100)
    assert off_by(model, truth) < 0.02
    assert model.error_ratio < 0.02


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_a_machine_that_changes_is_followed_within_100_batches(factor: float) -> None:
    model = BatchTime()
    learn(model, NAMED["cpu"].predict_s, 200)
    learn(model, NAMED["cpu"].times(factor).predict_s, 100)
    assert off_by(model, NAMED["cpu"].times(factor)) < 0.1


def test_noise_is_averaged_out() -> None:
    model, noise = BatchTime(), np.random.default_rng(8)
    learn(model, lambda rows, tokens: NAMED["cpu"].predict_s(rows, tokens) * noise.lognormal(0, 0.1), 300)
    assert off_by(model, NAMED["cpu"]) < 0.25
    assert model.error_ratio < 0.2


def test_a_stall_is_not_a_new_machine() -> None:
    model = BatchTime()
    learn(model, NAMED["cpu"].predict_s, 100)
    model.observe(1, 100, 60.0)
    assert off_by(model, NAMED["cpu"]) < 1.0
    learn(model, NAMED["cpu"].predict_s, 50)
    assert off_by(model, NAMED["cpu"]) < 0.05


def test_shapes_that_were_not_seen_keep_their_predictions() -> None:
    model = BatchTime(start=(8e-3, 0.0, 0.18e-3, 8e-8))
    for _ in range(500):
        model.observe(1, 100, NAMED["cpu"].predict_s(1, 100))
    assert off_by(model, NAMED["cpu"]) < 0.01


@given(st.lists(st.tuples(st.integers(1, 32), st.integers(1, 2048), st.floats(0, 100)), max_size=50))
def test_time_grows_with_rows_and_with_tokens_whatever_was_seen(seen: list[tuple[int, int, float]]) -> None:
    model = BatchTime()
    for rows, tokens, seconds in seen:
        model.observe(rows, tokens, seconds)
    assert min(model.coefficients) >= 0
    assert np.isfinite(model.coefficients).all()
    assert 0 <= model.predict_s(1, 16) <= model.predict_s(1, 300) <= model.predict_s(2, 300)


@given(SHAPES)
def test_a_table_says_what_single_predictions_say(shapes: list[tuple[int, int]]) -> None:
    model = BatchTime()
    learn(model, NAMED["gpu"].predict_s, 20)
    rows, tokens = np.array(shapes, np.float64).T
    assert model.table_s(rows, tokens) == pytest.approx([model.predict_s(*shape) for shape in shapes])


def test_the_error_is_relative_to_what_batches_took() -> None:
    model = BatchTime(start=(0.0, 0.0, 1e-3, 0.0))
    assert model.error_ratio == 0
    model.observe(2, 100, 0.4)
    assert model.error_ratio == pytest.approx(0.1 * 0.5)


def test_a_batch_that_took_no_time_breaks_nothing() -> None:
    model = BatchTime()
    model.observe(1, 1, 0.0)
    assert 0 <= model.predict_s(1, 1) < 2.1e-3


def test_a_time_that_is_no_number_teaches_nothing() -> None:
    model = BatchTime()
    model.observe(1, 1, math.nan)
    model.observe(1, 1, math.inf)
    assert model.coefficients == BatchTime.START


@pytest.mark.parametrize("state", [[], [[1.0]], [[1.0] * 4] * 5, [[math.nan] * 4] * 6, [[-1.0] * 4] * 6])
def test_a_state_that_is_none_is_refused_and_changes_nothing(state: list[list[float]]) -> None:
    model = BatchTime()
    before = model.coefficients
    with pytest.raises(ValueError, match="fit"):
        model.restore(state)
    assert model.coefficients == before


def test_a_restored_model_predicts_and_learns_as_the_one_before() -> None:
    old, new = BatchTime(), BatchTime()
    learn(old, NAMED["cpu"].predict_s, 50)
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
