"""The schedule: warm-up, constant, decay to zero, by steps, by minutes or by whichever comes first."""

from __future__ import annotations

import itertools

import pytest

from training.config import ScheduleSection
from training.schedule import Schedule


def schedule(**values: float | int | None) -> Schedule:
    return Schedule(section=ScheduleSection(**{"warmup_steps": 10, "decay_fraction": 0.25, **values}))


def test_a_run_by_steps_warms_up_stays_and_decays_to_zero() -> None:
    found = schedule(max_steps=100)
    assert [found.factor(step, 0.0) for step in (0, 4, 9, 10, 50, 75)] == pytest.approx([0.1, 0.5, 1, 1, 1, 1])
    assert [found.factor(step, 0.0) for step in (80, 90, 99, 100, 120)] == pytest.approx([0.8, 0.4, 0.04, 0, 0])


def test_a_run_by_minutes_decays_by_the_clock() -> None:
    found = schedule(max_minutes=2.0)
    assert [found.factor(500, seconds) for seconds in (0, 90, 105, 120)] == pytest.approx([1, 1, 0.5, 0])
    assert found.factor(0, 0.0) == pytest.approx(0.1)


def test_the_rate_never_jumps_by_more_than_a_step_of_its_lines() -> None:
    found = schedule(max_steps=100)
    factors = [found.factor(step, 0.0) for step in range(101)]
    assert max(abs(a - b) for a, b in itertools.pairwise(factors)) <= 0.1 + 1e-9


@pytest.mark.parametrize(
    ("limits", "step", "elapsed_s", "over"),
    [
        ({"max_steps": 100}, 99, 1e9, False),
        ({"max_steps": 100}, 100, 0.0, True),
        ({"max_minutes": 1.0}, 10**6, 59.9, False),
        ({"max_minutes": 1.0}, 0, 60.0, True),
        ({"max_steps": 100, "max_minutes": 1.0}, 100, 1.0, True),
        ({"max_steps": 100, "max_minutes": 1.0}, 1, 60.0, True),
        ({"max_steps": 100, "max_minutes": 1.0}, 99, 59.0, False),
    ],
)
def test_a_run_is_over_at_its_first_limit(limits: dict[str, float], step: int, elapsed_s: float, over: bool) -> None:
    assert schedule(**limits).is_over(step, elapsed_s) is over


def test_without_warmup_or_decay_the_rate_is_constant() -> None:
    found = schedule(max_steps=10, warmup_steps=0, decay_fraction=0.0)
    assert [found.factor(step, 0.0) for step in range(10)] == [1.0] * 10


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_steps": 100}, 100),
        ({"max_minutes": 1.0}, 10 + 50 / 0.5),
        ({"max_steps": 100, "max_minutes": 1.0}, 100),
        ({"max_steps": 200, "max_minutes": 1.0}, 110),
    ],
)
def test_the_steps_of_a_run_are_expected_at_its_pace(limits: dict[str, float], expected: float) -> None:
    assert schedule(**limits).steps_expected(step=10, elapsed_s=10.0, step_s=0.5) == pytest.approx(expected)
