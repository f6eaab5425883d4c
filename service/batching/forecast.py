"""Arrival forecast: how many requests will come in the next seconds, and whether a burst has begun.

    arrivals ─▶ one faded count for each scale: 1 s, 10 s, 1 min, 10 min    (rate = count / scale)
             ─▶ forecast of the next second, ten seconds, minute: the scales' rates, weighted by how well each has
                foretold as long a time of late
    burst      the last second brought more than the last minute's rate explains (a Poisson test)

Everything costs a fixed, small number of operations an arrival, and time is told with each: nothing ticks.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import mul
from typing import Any

SCALES_S = (1.0, 10.0, 60.0, 600.0)
"""An arrival so long ago counts 1/e."""

HORIZONS_S = (1.0, 10.0, 60.0)
"""Times ahead whose forecasts are compared with what came."""

LENGTH_CLASSES = (64, 256, 1024)
"""Upper bounds, in source tokens, of the classes of length but the last."""

ERROR_WEIGHT = 0.1
SURPRISE = 3.3
"""Standard deviations over what is usual that are a burst: Poisson arrivals reach them once in 2,000 looks."""

BLUR = 0.25
"""Share of the variance of Poisson arrivals below which scales' errors are not told apart."""

BURST_S = 10.0
"""While a burst goes on it is expected to last so long."""

QUIET_S = 1.0
"""Over how long the first arrivals are averaged: the first one does not make a rate."""

SPANS_AT_ONCE = 16
"""After a silence, spans that are looked at one by one."""

MEMORY = 6.0
"""A scale whose count is so many of its lengths old has nothing to say."""


@dataclass(slots=True)
class Horizon:
    """One time ahead: what was forecast for it, and what came."""

    span_s: float
    ends_s: float = math.inf
    came: int = 0
    forecasts: list[float] = field(default_factory=lambda: [0.0] * len(SCALES_S))
    """Of each scale when the span began, requests per second."""

    squares: list[float] = field(default_factory=lambda: [0.0] * len(SCALES_S))
    """Of each scale's errors, faded means."""

    blend: float = 0.0
    missed: float = 0.0
    """|forecast - came|, a faded mean in requests per second."""

    rate: float = 0.0
    """What came, likewise."""

    @property
    def error_ratio(self) -> float:
        """How far forecasts were off, as a share of what came; 0 before the first."""
        return self.missed / self.rate if self.rate > 0 else 0.0

    def weights(self) -> list[float]:
        """Of the scales, by their errors. What comes by chance is no fault of theirs, and blurs the rest."""
        chance = max(self.rate, 1 / self.span_s) / self.span_s
        weights = [1 / (max(square - chance, 0.0) + BLUR * chance) ** 2 for square in self.squares]
        whole = sum(weights)
        return [weight / whole for weight in weights]

    def close(self) -> None:
        """The span is over: learn from it."""
        came = self.came / self.span_s
        self.squares = [
            square + ERROR_WEIGHT * ((forecast - came) ** 2 - square)
            for square, forecast in zip(self.squares, self.forecasts, strict=True)
        ]
        self.missed += ERROR_WEIGHT * (abs(self.blend - came) - self.missed)
        self.rate += ERROR_WEIGHT * (came - self.rate)
        self.came = 0


class Arrivals:
    """One stream of arrivals: faded counts, and no more."""

    __slots__ = ("began_s", "counts", "last_s")

    def __init__(self) -> None:
        self.counts = [0.0] * len(SCALES_S)
        self.began_s = self.last_s = math.nan

    def fade(self, now_s: float) -> None:
        """Time has passed."""
        elapsed_s = now_s - self.last_s
        if elapsed_s > 0:
            self.counts = [
                count * math.exp(-elapsed_s / scale) for count, scale in zip(self.counts, SCALES_S, strict=True)
            ]
            self.last_s = now_s

    def add(self, now_s: float) -> None:
        """One more."""
        if math.isnan(self.last_s):
            self.began_s = self.last_s = now_s
        self.fade(now_s)
        self.counts = [count + 1 for count in self.counts]

    def rates(self, now_s: float) -> list[float]:
        """Requests per second by each scale."""
        if math.isnan(self.last_s):
            return [0.0] * len(SCALES_S)
        self.fade(now_s)
        age_s = max(now_s - self.began_s, QUIET_S)
        return [
            count / (scale * -math.expm1(-age_s / scale)) for count, scale in zip(self.counts, SCALES_S, strict=True)
        ]


class Forecast:
    """Arrivals at one lane: all of them, and each task's of each length; refused ones count, for they came too."""

    def __init__(self) -> None:
        self.all = Arrivals()
        self.horizons = tuple(Horizon(span_s) for span_s in HORIZONS_S)
        self._kinds: dict[tuple[Hashable, int], Arrivals] = {}

    def record(self, now_s: float, tokens: int, task: Hashable = None) -> None:
        """A request came, of so many source tokens."""
        self._pass(now_s)
        self.all.add(now_s)
        for horizon in self.horizons:
            if horizon.ends_s == math.inf:
                self._open(horizon, now_s)
            horizon.came += 1
        kind = (task, length_class(tokens))
        if kind not in self._kinds:
            self._kinds[kind] = Arrivals()
        self._kinds[kind].add(now_s)

    def rate_per_s(
        self, horizon_s: float, *, now_s: float, task: Hashable | None = None, length: int | None = None
    ) -> float:
        """Requests per second that are expected over the next `horizon_s`: of all, or of a task, or a length class."""
        self._pass(now_s)
        weights = min(self.horizons, key=lambda horizon: abs(math.log(horizon.span_s / horizon_s))).weights()
        if horizon_s <= BURST_S and self.burst(now_s):
            weights = [1.0, *(0.0 for _ in SCALES_S[1:])]
        if task is None and length is None:
            streams = [self.all]
        else:
            streams = [
                arrivals
                for (name, number), arrivals in self._kinds.items()
                if task in (None, name) and length in (None, number)
            ]
        return sum(sum(map(mul, weights, arrivals.rates(now_s))) for arrivals in streams)

    def burst(self, now_s: float) -> bool:
        """Whether more came in the last second than the last minute's rate explains."""
        short, _, usual, _ = self.all.rates(now_s)
        # A faded count of mean m has the variance m/2: twice of it is spread as a Poisson count is.
        count, mean = 2 * short * SCALES_S[0], 2 * usual * SCALES_S[0]
        return _surprise(count, mean) > SURPRISE

    def kinds(self) -> list[tuple[Hashable, int]]:
        """Tasks and length classes of which any came."""
        return list(self._kinds)

    def state(self, now_s: float) -> dict[str, Any]:
        """What has been learnt; times become ages."""
        self._pass(now_s)
        return {
            "scales_s": list(SCALES_S),
            "all": _written(self.all, now_s),
            "kinds": [[str(task), length, _written(each, now_s)] for (task, length), each in self._kinds.items()],
            "horizons": [[list(each.squares), each.missed, each.rate] for each in self.horizons],
        }

    def restore(self, state: Mapping[str, Any], now_s: float, away_s: float, tasks: Mapping[str, Hashable]) -> None:
        """Go on from what another has learnt, `away_s` ago. That nobody came meanwhile is not known: counts stay as
        they were, and those that are too old are left out. `tasks`: by their names.

        Raises ValueError or KeyError where it is no such thing.
        """
        if state["scales_s"] != list(SCALES_S):
            raise ValueError("arrivals were counted over other scales")
        everything = _read(state["all"], now_s, away_s)
        kinds = {(tasks[name], int(length)): _read(each, now_s, away_s) for name, length, each in state["kinds"]}
        horizons = []
        for span_s, (squares, missed, rate) in zip(HORIZONS_S, state["horizons"], strict=True):
            numbers = _numbers([*squares, missed, rate], len(SCALES_S) + 2)
            horizons.append(Horizon(span_s, squares=numbers[:-2], missed=numbers[-2], rate=numbers[-1]))
        self.all, self._kinds, self.horizons = everything, kinds, tuple(horizons)

    def _pass(self, now_s: float) -> None:
        """Close the spans that are over, in their order. A clock that stands still, or runs back, closes none."""
        for _ in range(SPANS_AT_ONCE):
            horizon = min(self.horizons, key=lambda each: each.ends_s)
            if horizon.ends_s > now_s:
                return
            horizon.close()
            self._open(horizon, horizon.ends_s)
        # Of a long silence the rest says nothing new.
        for horizon in self.horizons:
            if horizon.ends_s <= now_s:
                self._open(horizon, now_s)

    def _open(self, horizon: Horizon, now_s: float) -> None:
        horizon.ends_s = now_s + horizon.span_s
        horizon.forecasts = self.all.rates(now_s)
        horizon.blend = sum(map(mul, horizon.weights(), horizon.forecasts))


def length_class(tokens: int) -> int:
    """The class of a source: 0 is the shortest."""
    return sum(tokens > bound for bound in LENGTH_CLASSES)


def _surprise(count: float, mean: float) -> float:
    """By how many standard deviations a Poisson count is above its mean (Anscombe's transformation, 1948)."""
    return 2 * (math.sqrt(count + 0.375) - math.sqrt(mean + 0.375))


def _written(arrivals: Arrivals, now_s: float) -> list[Any]:
    arrivals.rates(now_s)
    return [0.0 if math.isnan(arrivals.began_s) else now_s - arrivals.began_s, list(arrivals.counts)]


def _read(written: Sequence[Any], now_s: float, away_s: float) -> Arrivals:
    age_s, counts = written
    arrivals = Arrivals()
    arrivals.began_s, arrivals.last_s = now_s - _numbers([age_s], 1)[0], now_s
    arrivals.counts = [
        count if away_s < MEMORY * scale else 0.0
        for count, scale in zip(_numbers(counts, len(SCALES_S)), SCALES_S, strict=True)
    ]
    return arrivals


def _numbers(values: Sequence[float], count: int) -> list[float]:
    numbers = [float(value) for value in values]
    if len(numbers) != count or not all(math.isfinite(value) and value >= 0 for value in numbers):
        raise ValueError("counts and rates are numbers that are not negative")
    return numbers
