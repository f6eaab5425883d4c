"""The latency model learns what batches take, and knows how far it is off; the loop's clock keeps time."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.clock import LoopClock
from service.batching.latency import TokenRate

SHAPES = st.lists(st.tuples(st.integers(1, 32), st.integers(1, 2048)), min_size=100, max_size=150)


@given(st.floats(1e-6, 1e-2), SHAPES)
def test_a_constant_rate_is_learnt_and_the_error_fades(rate: float, shapes: list[tuple[int, int]]) -> None:
    model = TokenRate()
    for rows, tokens in shapes:
        model.observe(rows, tokens, rows * tokens * rate)
    assert model.predict_s(3, 100) == pytest.approx(300 * rate, rel=0.01 + 1e-4 / rate * 0.9**100)
    worst = abs(1e-4 - rate) / rate
    # Each step takes a tenth off the rate's error, and adds a tenth of it to a mean that fades as fast.
    assert model.error_ratio <= worst * 0.1 * len(shapes) * 0.9 ** (len(shapes) - 1) + 1e-9


def test_the_error_is_relative_to_what_batches_took() -> None:
    model = TokenRate(seconds_per_token=1e-3, weight=0.5)
    assert model.error_ratio == 0
    model.observe(2, 100, 0.4)
    assert model.error_ratio == pytest.approx(0.25)
    assert model.predict_s(1, 100) == pytest.approx(0.15)


def test_a_batch_that_took_no_time_breaks_nothing() -> None:
    model = TokenRate()
    model.observe(1, 1, 0.0)
    assert model.predict_s(1, 1) == pytest.approx(0.9e-4)


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
