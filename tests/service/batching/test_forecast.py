"""The arrival forecast on simulated traffic: rates, bursts, errors, silence and restarts."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest

from service.batching.forecast import HORIZONS_S, Forecast

TASKS = {"generation": "generation", "qa": "qa"}


def poisson(forecast: Forecast, rate: float, start_s: float, span_s: float, seed: int = 0, task: str = "qa") -> float:
    """Arrivals at a rate; returns the end."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * span_s * 2) + 10)
    for at_s in start_s + gaps.cumsum():
        if at_s > start_s + span_s:
            break
        forecast.record(float(at_s), 100, task)
    return start_s + span_s


@pytest.mark.parametrize("rate", [0.5, 5.0, 50.0])
def test_a_steady_rate_is_found_at_every_horizon(rate: float) -> None:
    forecast, now_s = Forecast(), 0.0
    found: dict[float, list[float]] = {horizon_s: [] for horizon_s in HORIZONS_S}
    for seed in range(60):
        now_s = poisson(forecast, rate, now_s, 10.0, seed)
        for horizon_s, rates in found.items():
            rates.append(forecast.rate_per_s(horizon_s, now_s=now_s))
    for rates in found.values():
        assert np.mean(rates[20:]) == pytest.approx(rate, rel=0.2)


def test_a_steady_rates_error_is_hardly_more_than_chance() -> None:
    forecast = Forecast()
    poisson(forecast, 20.0, 0.0, 600.0)
    chance = math.sqrt(2 / math.pi / 20)
    assert forecast.horizons[0].error_ratio < 1.6 * chance
    assert forecast.horizons[1].error_ratio < 0.25


def test_a_burst_is_seen_at_once_and_passes() -> None:
    forecast = Forecast()
    now_s = poisson(forecast, 2.0, 0.0, 120.0)
    assert not forecast.burst(now_s)
    came = 0
    while not forecast.burst(now_s):
        now_s += 0.02
        came += 1
        forecast.record(now_s, 100, "qa")
    assert came <= 12
    assert forecast.rate_per_s(1.0, now_s=now_s) > 2 * 2.0
    assert not forecast.burst(now_s + 10)


def test_steady_arrivals_are_hardly_ever_a_burst() -> None:
    for rate in (1.0, 20.0):
        forecast, now_s, alarms = Forecast(), 0.0, 0
        gaps = np.random.default_rng(2).exponential(1 / rate, 4000)
        for gap_s in gaps:
            now_s += float(gap_s)
            forecast.record(now_s, 10, "qa")
            alarms += now_s > 60 and forecast.burst(now_s)
        assert alarms <= 0.01 * len(gaps)


def test_the_first_arrivals_are_no_flood() -> None:
    forecast = Forecast()
    forecast.record(5.0, 10, "qa")
    forecast.record(5.0, 10, "qa")
    assert forecast.rate_per_s(1.0, now_s=5.0) < 5
    assert not forecast.burst(5.0)


def test_tasks_and_lengths_are_told_apart() -> None:
    forecast = Forecast()
    for number in range(600):
        forecast.record(number * 0.1, 20, "generation")
        if number % 5 == 0:
            forecast.record(number * 0.1, 700, "qa")
    rates = {
        (task, length): forecast.rate_per_s(10.0, now_s=60.0, task=task, length=length)
        for task, length in forecast.kinds()
    }
    assert rates == {("generation", 0): pytest.approx(10, rel=0.1), ("qa", 2): pytest.approx(2, rel=0.1)}
    assert forecast.rate_per_s(10.0, now_s=60.0) == pytest.approx(sum(rates.values()))


def test_silence_of_any_length_fades_and_costs_nothing() -> None:
    forecast = Forecast()
    now_s = poisson(forecast, 10.0, 0.0, 60.0)
    assert forecast.rate_per_s(1.0, now_s=now_s + 30) < 10
    began_s = time.thread_time()
    assert forecast.rate_per_s(1.0, now_s=now_s + 1e7) < 1e-3
    assert time.thread_time() - began_s < 0.05
    forecast.record(now_s + 1e7, 10, "qa")


def test_a_clock_that_stands_still_or_runs_back_breaks_nothing() -> None:
    forecast = Forecast()
    for at_s in (10.0, 10.0, 10.0, 9.0, 10.0, 12.0):
        forecast.record(at_s, 10, "qa")
    assert 0 < forecast.rate_per_s(1.0, now_s=12.0) < 10


def restarted(old: Forecast, now_s: float, away_s: float) -> Forecast:
    new = Forecast()
    new.restore(json.loads(json.dumps(old.state(now_s))), 1000.0, away_s, TASKS)
    return new


def test_a_restart_goes_on_where_the_last_run_was() -> None:
    old = Forecast()
    now_s = poisson(old, 8.0, 0.0, 300.0)
    new = restarted(old, now_s, away_s=2.0)
    assert new.rate_per_s(10.0, now_s=1000.0) == pytest.approx(old.rate_per_s(10.0, now_s=now_s))
    assert new.horizons[0].error_ratio == old.horizons[0].error_ratio > 0
    assert new.kinds() == old.kinds()


def test_what_is_too_old_is_left_out() -> None:
    old = Forecast()
    now_s = poisson(old, 8.0, 0.0, 300.0)
    counts = restarted(old, now_s, away_s=900.0).all.counts
    assert [count > 0 for count in counts] == [False, False, False, True]


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("all"),
        lambda state: state.update(scales_s=[1, 2]),
        lambda state: state["kinds"].append(["poetry", 1, [0, [0, 0, 0, 0]]]),
        lambda state: state["all"][1].pop(),
        lambda state: state["horizons"][0][0].append(-1),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(damage: object) -> None:
    old, new = Forecast(), Forecast()
    now_s = poisson(old, 5.0, 0.0, 20.0)
    state = old.state(now_s)
    damage(state)  # type: ignore[operator]
    with pytest.raises((ValueError, KeyError)):
        new.restore(state, 0.0, 0.0, TASKS)
    assert new.all.counts == Forecast().all.counts
    assert new.kinds() == []
