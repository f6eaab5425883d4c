"""Spans in numpy: against the enumeration of all tag sequences, the network's own CRF, and one window against many."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deploy.triton.manifest import CrfScores
from model.crf import SpanCRF
from service.tasks.spans import (
    BEGIN,
    INSIDE,
    OUTSIDE,
    Span,
    SpanDistribution,
    SpanReader,
    Window,
    make_windows,
    span_scores,
)

ZERO = CrfScores(start=(0,) * 3, transition=((0,) * 3,) * 3, end=(0,) * 3)


@dataclass
class Problem:
    """Emissions [S,3] and a CRF."""

    emissions: np.ndarray
    crf: CrfScores
    max_tokens: int


@st.composite
def problems(draw: st.DrawFn, *, size: int = 6, longest: int = 8) -> Problem:
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    scale = draw(st.sampled_from([0.5, 2.0, 8.0]))
    return Problem(
        emissions=(scale * random.standard_normal((draw(st.integers(1, size)), 3))).astype(np.float32),
        crf=crf_of(random),
        max_tokens=draw(st.integers(1, longest)),
    )


def crf_of(random: np.random.Generator) -> CrfScores:
    def draw() -> tuple[float, ...]:
        return tuple(random.standard_normal(3).tolist())

    return CrfScores(start=draw(), transition=(draw(), draw(), draw()), end=draw())


def distributions(problem: Problem, windows: list[Window], count: int = 1000) -> list[SpanDistribution]:
    """All windows of the same emissions."""
    reader = SpanReader(windows=windows, crf=problem.crf, max_tokens=problem.max_tokens, count=count)
    return [reader.read(index, problem.emissions[each.start : each.end]) for index, each in enumerate(windows)]


def whole(problem: Problem, count: int = 1000) -> SpanDistribution:
    """The context as one window."""
    (found,) = distributions(problem, [Window(start=0, end=len(problem.emissions))], count)
    return found


def odds(spans: SpanDistribution) -> float:
    """Of any span against none."""
    return math.expm1(spans.log_total)


def enumerate_spans(problem: Problem) -> dict[tuple[int, int] | None, float]:
    """Probability of every allowed span, and of none, from all tag sequences."""
    scores: dict[tuple[int, int] | None, float] = {}
    crf = problem.crf
    for tags in itertools.product((OUTSIDE, BEGIN, INSIDE), repeat=len(problem.emissions)):
        inside = [place for place, tag in enumerate(tags) if tag != OUTSIDE]
        span = (inside[0], inside[-1] + 1) if inside else None
        if span and tags[slice(*span)] != (BEGIN, *[INSIDE] * (span[1] - span[0] - 1)):
            continue
        if span and span[1] - span[0] > problem.max_tokens:
            continue
        scores[span] = (
            crf.start[tags[0]]
            + sum(float(problem.emissions[place, tag]) for place, tag in enumerate(tags))
            + sum(crf.transition[before][after] for before, after in itertools.pairwise(tags))
            + crf.end[tags[-1]]
        )
    total = math.log(sum(math.exp(score) for score in scores.values()))
    return {span: math.exp(score - total) for span, score in scores.items()}


def probabilities(spans: SpanDistribution) -> dict[tuple[int, int] | None, float]:
    return {(span.start, span.end): spans.probability(span) for span in spans.best} | {None: spans.none_probability}


def torch_crf(problem: Problem) -> SpanCRF:
    crf = SpanCRF(problem.max_tokens)
    with torch.no_grad():
        for parameter, values in (
            (crf.start, problem.crf.start),
            (crf.transition, problem.crf.transition),
            (crf.end, problem.crf.end),
        ):
            parameter.copy_(torch.tensor(values))
    return crf.requires_grad_(False)


@given(problems())
def test_probabilities_are_the_enumerations(problem: Problem) -> None:
    expected = enumerate_spans(problem)
    found = probabilities(whole(problem))
    assert found.keys() == expected.keys()
    for span, probability in expected.items():
        assert found[span] == pytest.approx(probability, rel=1e-9, abs=1e-300)
    assert sum(found.values()) == pytest.approx(1)


@given(problems(size=200, longest=60))
def test_spans_are_those_of_the_network(problem: Problem) -> None:
    crf = torch_crf(problem)
    emissions, context = torch.from_numpy(problem.emissions)[None], torch.tensor([[0, len(problem.emissions)]])
    theirs = crf.best(emissions, context, count=10)
    ours = whole(problem, count=10)
    assert ours.none_probability == pytest.approx(float(theirs.none), rel=1e-3, abs=1e-6)
    best = ours.best
    expected = list(zip(theirs.start[0].tolist(), theirs.end[0].tolist(), theirs.probability[0].tolist(), strict=True))
    assert len(best) == sum(probability > 0 for _, _, probability in expected) or best[-1].score < -80
    assert [ours.probability(span) for span in best] == pytest.approx(
        [probability for _, _, probability in expected][: len(best)], rel=1e-3, abs=1e-6
    )
    if expected[0][2] > 1.01 * (expected[1][2] if len(expected) > 1 else 0):
        assert (best[0].start, best[0].end) == expected[0][:2]
    scores = crf.span_scores(emissions, context)[0].numpy()
    np.testing.assert_allclose(span_scores(problem.emissions, problem.crf, problem.max_tokens), scores, atol=2e-3)


@given(problems(size=60, longest=60), st.integers(3, 40))
def test_windows_that_show_a_tokens_neighbours_score_spans_as_the_whole_context_does(
    problem: Problem, room: int
) -> None:
    """Seen from inside, a window's border makes no difference: a span whose best window shows a token on either side
    of it has the same score there as in the whole context."""
    problem.max_tokens = min(problem.max_tokens, max(1, room - room // 2 - 1))
    expected, found = whole(problem, 5000), distributions(problem, make_windows(len(problem.emissions), room), 5000)
    assert sum(map(odds, found)) == pytest.approx(odds(expected), rel=1e-9)
    ours = {(span.start, span.end): span.score for each in found for span in each.best}
    assert sum(len(each.best) for each in found) == len(ours) == len(expected.best)
    for span in expected.best:
        assert ours[span.start, span.end] == pytest.approx(span.score, rel=1e-9, abs=1e-9)


@given(problems(size=60, longest=60), st.integers(1, 40))
def test_every_span_counts_once(problem: Problem, room: int) -> None:
    size = len(problem.emissions)
    windows = make_windows(size, room)
    flat = Problem(emissions=np.zeros((size, 3)), crf=ZERO, max_tokens=problem.max_tokens)
    shown = {
        (start, end)
        for window in windows
        for start in range(window.start, window.end)
        for end in range(start + 1, min(start + problem.max_tokens, window.end) + 1)
    }
    assert sum(map(odds, distributions(flat, windows))) == pytest.approx(len(shown))


def test_a_span_has_the_score_of_the_window_that_shows_most_around_it() -> None:
    """Two windows of eight share four tokens; each says something else about them."""
    windows = make_windows(12, 8)
    assert windows == [Window(start=0, end=8), Window(start=4, end=12)]
    reader = SpanReader(windows=windows, crf=ZERO, max_tokens=1, count=100)
    scores = {}
    for index in range(2):
        emissions = np.zeros((8, 3))
        emissions[:, BEGIN] = 1 + index
        scores |= {span.start: span.score for span in reader.read(index, emissions).best}
    # Token 5 has two on its right in the first window and one on its left in the second; 6 is the other way round.
    assert scores == {place: 1.0 if place <= 5 else 2.0 for place in range(12)}


def test_equally_good_spans_come_in_the_order_of_the_context() -> None:
    problem = Problem(emissions=np.zeros((4, 3)), crf=ZERO, max_tokens=2)
    assert [(span.start, span.end) for span in whole(problem).best] == [
        (0, 1), (0, 2), (1, 2), (1, 3), (2, 3), (2, 4), (3, 4)
    ]  # fmt: skip


def test_a_sure_model_does_not_overflow() -> None:
    emissions = np.zeros((5, 3), np.float32)
    emissions[2, BEGIN] = 5000
    spans = whole(Problem(emissions=emissions, crf=ZERO, max_tokens=3))
    best = spans.best[0]
    assert (best.start, best.end) == (2, 3)
    assert spans.none_probability == 0
    # The span may be one, two or three tokens long: all the same to this CRF.
    assert spans.probability(best) == pytest.approx(1 / 3)


def test_an_empty_context_has_no_answer() -> None:
    spans = whole(Problem(emissions=np.zeros((0, 3), np.float32), crf=ZERO, max_tokens=3))
    assert (spans.best, spans.none_probability) == ([], 1.0)


@given(st.integers(0, 500), st.integers(1, 80))
def test_windows_cover_the_context_and_cut_no_answer_of_half_their_size(tokens: int, room: int) -> None:
    windows = make_windows(tokens, room)
    assert all(0 <= window.end - window.start <= room for window in windows)
    assert (windows[0].start, windows[-1].end) == (0, tokens)
    assert len({window.start for window in windows}) == len(windows)
    shown = {(start, end) for window in windows for start, end in inner_spans(window, room - room // 2)}
    whole_context = Window(start=0, end=tokens)
    assert shown == set(inner_spans(whole_context, room - room // 2))
    assert len(windows) <= 1 + max(0, math.ceil((tokens - room) / max(1, room // 2)))


def inner_spans(window: Window, longest: int) -> list[tuple[int, int]]:
    return [
        (start, end)
        for start in range(window.start, window.end)
        for end in range(start + 1, min(start + longest, window.end) + 1)
    ]


def test_a_context_that_fits_is_one_window() -> None:
    assert make_windows(80, 80) == [Window(start=0, end=80)]
    assert make_windows(81, 80) == [Window(start=0, end=80), Window(start=40, end=81)]


def test_spans_are_ordered_by_their_scores() -> None:
    assert max(Span(score=1.0, start=0, end=1), Span(score=2.0, start=5, end=6)).start == 5
