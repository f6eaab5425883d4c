"""How long an answer will be: quantiles by task and length of source, learnt as answers end.

An answer that was cut (by its limit, a client that left, or because it is still being written) says only that it would
have been longer, so lengths are kept as hazards (Kaplan and Meier, "Nonparametric Estimation from Incomplete
Observations", 1958), over bins that widen with length:

    bin                 1   2   3   4   5   6-7   8-9 …
    exposed             answers that came so far (a part of one where an answer was cut inside the bin)
    ended               answers that ended there
    P(longer than bin)  Π over bins (1 - ended / exposed)

Both counts fade, so that what changes is followed. Where a class of sources has few answers it leans on all answers of
its task, and where the task has few, on a wide guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from deploy.triton.protocol import Task

LONGEST = 65_536
BINS_PER_DOUBLING = 4
EDGES = np.unique(np.round(2.0 ** (np.arange(BINS_PER_DOUBLING * math.log2(LONGEST) + 1) / BINS_PER_DOUBLING)))
"""FP64 [K+1]: a bin holds lengths from its edge up to the next one's. All powers of two, where limits stand, are
edges."""

WIDTHS = np.diff(EDGES)
REMEMBERED = 500
"""Answers of a class that are told apart from none: the newest counts 1, one so much older 1/e."""

SOURCE_CLASSES = (64, 256, 1024)
"""Upper bounds, in tokens, of the classes of sources but the last."""

LEANING = 8.0
"""Answers of all classes that count as a class's own."""

GUESSED = 2.0
GUESSED_MEDIAN = 64
"""Before the first answer: as if two had been seen, of lengths that are spread exponentially."""

CHANGES = 8
"""Answers that begin, or end, after which quantiles are worked out anew."""

WATCHED = (0.5, 0.9)
"""Quantiles whose calibration is kept."""

CALIBRATION_WEIGHT = 0.02
SCALE_RATE = 0.05
"""How far an answer that was longer than its median, or shorter, moves the scale: Robbins and Monro, "A Stochastic
Approximation Method", 1951; half of them are longer where it stands still."""

EXPECTED = (0.1, 0.5, 0.9)
"""Quantiles of an answer's length that policies plan with."""

_GUESS = 1 - 0.5 ** (WIDTHS / GUESSED_MEDIAN)


class _Counts:
    """Of one class: how many answers came to each bin, and how many ended there; FP64 [K]."""

    def __init__(self) -> None:
        self.exposed, self.ended = np.zeros(len(WIDTHS)), np.zeros(len(WIDTHS))

    def add(self, generated: int, ended: bool) -> None:
        """One more answer of that length; the others fade."""
        fade = 1 - 1 / REMEMBERED
        self.exposed *= fade
        self.ended *= fade
        self.exposed += _exposure(generated, ended)
        if ended:
            self.ended[_bin(generated)] += 1

    def hazards(self, prior: np.ndarray, weight: float, cut: np.ndarray | float = 0.0) -> np.ndarray:
        """P(ends in a bin | came to it), FP64 [K], with a prior of that weight; `cut` is exposure on top."""
        hazards: np.ndarray = (self.ended + weight * prior) / (self.exposed + cut + weight)
        return hazards


@dataclass(slots=True, eq=False)
class OpenAnswer:
    """An answer that is being written."""

    task: Task
    source_tokens: int
    limit: int
    predicted: tuple[int, ...]
    """Its WATCHED quantiles when it began."""

    likely: int
    """What was planned with then."""

    generated: int = 0
    """Tokens that it is known to have."""

    steps: Callable[[], int] = lambda: 0
    """Steps of its decoder since it began: an answer that comes whole tells of no token before its end."""

    @property
    def so_far(self) -> int:
        """Tokens that it has by now."""
        return max(self.generated, min(self.limit, self.steps()))


class ExpectedAnswer(NamedTuple):
    """How long an answer may be expected to be: its EXPECTED quantiles, in tokens; 0 where nothing is written."""

    least: int
    likely: int
    most: int


NO_ANSWER = ExpectedAnswer(0, 0, 0)


@dataclass(slots=True)
class AnswerLengths:
    """Lengths of answers, of every task."""

    calibration: dict[float, float] = field(default_factory=lambda: {q: q for q in WATCHED})
    """Share of recent answers that were no longer than each quantile predicted when they began; what it should be is
    the quantile itself. Answers whose limit was below the prediction are left out."""

    scale: float = 1.0
    """What is planned with, over what the counts say: they remember long, and this follows within dozens of answers."""

    _tasks: dict[Task, _Counts] = field(default_factory=dict, repr=False)
    _classes: dict[tuple[Task, int], _Counts] = field(default_factory=dict, repr=False)
    _open: dict[OpenAnswer, None] = field(default_factory=dict, repr=False)
    _ends: dict[tuple[Task, int], np.ndarray] = field(default_factory=dict, repr=False)
    """P(no longer than a bin), FP64 [K+1] with a zero in front: worked out when asked for."""

    _changes: int = field(default=0, repr=False)

    def quantile(self, task: Task, source_tokens: int, q: float, limit: int, generated: int = 0) -> int:
        """Tokens that the share `q` of such answers does not exceed; no more than `limit`.

        `generated`: what one of them has written already, of those which came so far.
        """
        ends = self._distribution(task, source_class(source_tokens))
        begun = _interpolated(ends, generated + 1) if generated > 0 else 0.0
        wanted = begun + q * (1 - begun)
        index = int(np.searchsorted(ends, wanted, side="left"))
        if index == 0:
            return min(limit, max(1, generated))
        if index == len(ends):
            return limit
        low, high = ends[index - 1], ends[index]
        # A bin's lengths are whole numbers: its last one ends where the next bin begins.
        length = EDGES[index - 1] + WIDTHS[index - 1] * (wanted - low) / (high - low) - 1
        return min(limit, max(1, generated, math.ceil(length - 1e-9)))

    def expected(self, task: Task, source_tokens: int, shortest: int, limit: int) -> ExpectedAnswer:
        """What to expect of an answer of `shortest` to `limit` tokens. One that is to be routed may be read off its
        source, without a token; if it is written, it is most likely generated."""
        decoder = Task.GENERATION if task is Task.AUTO else task
        least, likely, most = (
            self._scaled(self.quantile(decoder, source_tokens, q, limit), shortest, limit) for q in EXPECTED
        )
        return ExpectedAnswer(0 if task is Task.AUTO else least, likely, most)

    def begin(self, task: Task, source_tokens: int, limit: int) -> OpenAnswer:
        """An answer begins."""
        predicted = tuple(self.quantile(task, source_tokens, q, limit) for q in WATCHED)
        likely = self._scaled(predicted[0], 0, limit)
        answer = OpenAnswer(task, source_tokens, limit, predicted, likely)
        self._open[answer] = None
        self._change()
        return answer

    def end(self, answer: OpenAnswer, *, ended: bool) -> None:
        """It came to its own end, or was cut: by its limit, or because nobody waits for it. May be called again."""
        if answer not in self._open:
            return
        del self._open[answer]
        generated = answer.generated if ended else answer.so_far
        self.observe(answer.task, answer.source_tokens, generated, ended)
        for q, predicted in zip(WATCHED, answer.predicted, strict=True):
            known = ended or generated > predicted
            if predicted < answer.limit and known:
                within = float(ended and generated <= predicted)
                self.calibration[q] += CALIBRATION_WEIGHT * (within - self.calibration[q])
        if answer.likely < answer.limit and (ended or generated > answer.likely):
            self.scale *= math.exp(SCALE_RATE * (EXPECTED[1] - float(generated <= answer.likely)))

    def observe(self, task: Task, source_tokens: int, generated: int, ended: bool) -> None:
        """An answer has come to its own end after so many tokens, or was cut there."""
        self._tasks.setdefault(task, _Counts()).add(generated, ended)
        self._classes.setdefault((task, source_class(source_tokens)), _Counts()).add(generated, ended)
        self._change()

    def state(self) -> dict[str, Any]:
        """What has been learnt."""
        return {
            "edges": EDGES.tolist(),
            "tasks": {task.name: _rows(counts) for task, counts in self._tasks.items()},
            "classes": {f"{task.name}/{number}": _rows(counts) for (task, number), counts in self._classes.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what another has learnt. Raises ValueError or KeyError where it is no such thing."""
        if state["edges"] != EDGES.tolist():
            raise ValueError("lengths of answers were kept in other bins")
        tasks = {Task[name]: _counts(rows) for name, rows in state["tasks"].items()}
        classes = {}
        for name, rows in state["classes"].items():
            task, _, number = name.partition("/")
            classes[Task[task], int(number)] = _counts(rows)
        self._tasks, self._classes = tasks, classes
        self._ends.clear()

    def _scaled(self, tokens: int, shortest: int, limit: int) -> int:
        return min(limit, max(1, shortest, round(self.scale * tokens)))

    def _change(self) -> None:
        self._changes += 1
        if self._changes >= CHANGES:
            self._changes = 0
            self._ends.clear()

    def _distribution(self, task: Task, number: int) -> np.ndarray:
        """P(no longer than a bin) of a class."""
        ends = self._ends.get((task, number))
        if ends is None:
            of_task = self._tasks.get(task, _Counts()).hazards(_GUESS, GUESSED, self._cut(task, None))
            own = self._classes.get((task, number), _Counts()).hazards(of_task, LEANING, self._cut(task, number))
            ends = self._ends[task, number] = np.concatenate([[0.0], 1 - np.cumprod(1 - own)])
        return ends

    def _cut(self, task: Task, number: int | None) -> np.ndarray:
        """Exposure of answers that are being written: FP64 [K]."""
        lengths = [
            answer.so_far
            for answer in self._open
            if answer.task is task and (number is None or source_class(answer.source_tokens) == number)
        ]
        return sum((_exposure(length, ended=False) for length in lengths), np.zeros(len(WIDTHS)))


def source_class(tokens: int) -> int:
    """The class of a source: 0 is the shortest."""
    return sum(tokens > bound for bound in SOURCE_CLASSES)


def _bin(generated: int) -> int:
    """Where an answer of that length belongs; an empty one counts as one token."""
    return min(int(np.searchsorted(EDGES, max(1, generated), side="right")) - 1, len(WIDTHS) - 1)


def _exposure(generated: int, ended: bool) -> np.ndarray:
    """How far an answer came into each bin: FP64 [K]. One that was cut after n tokens has not ended with 1 … n-1."""
    if ended:
        return np.asarray(np.arange(len(WIDTHS)) <= _bin(generated), np.float64)
    return np.clip((max(1, generated) - EDGES[:-1]) / WIDTHS, 0.0, 1.0)


def _interpolated(ends: np.ndarray, length: int) -> float:
    """P(shorter than `length`)."""
    return float(np.interp(length, EDGES, ends))


def _rows(counts: _Counts) -> list[list[float]]:
    return [np.round(counts.exposed, 6).tolist(), np.round(counts.ended, 6).tolist()]


def _counts(rows: Sequence[Sequence[float]]) -> _Counts:
    counts = _Counts()
    exposed, ended = np.array(rows[0], np.float64), np.array(rows[1], np.float64)
    sound = exposed.shape == ended.shape == WIDTHS.shape and np.isfinite(exposed).all()
    if not sound or not (ended >= 0).all() or not (ended <= exposed + 1e-3).all():
        raise ValueError("an answer ends once, where it came to")
    counts.exposed, counts.ended = exposed, ended
    return counts
