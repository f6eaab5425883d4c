"""Answers of many windows: no length, order or repetition of the context decides."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.tasks.merging import MOST_PLACES, MergedAnswers

Window = tuple[float, list[tuple[str, tuple[int, int], float]]]


@st.composite
def windows(draw: st.DrawFn, *, least: int = 1, most: int = 6, peak: float = 1.0) -> list[Window]:
    """Windows whose probabilities sum to 1 each; no answer has at least 1 - peak."""
    found: list[Window] = []
    for number in range(draw(st.integers(least, most))):
        weights = draw(st.lists(st.floats(0, 1), min_size=1, max_size=8))
        mass = draw(st.floats(0, peak))
        shares = [mass * weight / max(1.0, sum(weights)) for weight in weights]
        texts = [draw(st.sampled_from("abcdef")) for _ in shares]
        spans = [(text, (100 * number + at, 100 * number + at + 1), share)
                 for at, (text, share) in enumerate(zip(texts, shares, strict=True))]  # fmt: skip
        found.append((1 - sum(shares), spans))
    return found


def merged(all_windows: list[Window]) -> MergedAnswers:
    answers = MergedAnswers()
    for none, spans in all_windows:
        answers.add(none, spans)
    return answers


def scores(answers: MergedAnswers) -> list[float]:
    return [each.score for each in answers.best(20)]


@given(windows())
def test_scores_are_probabilities_that_sum_to_one_at_most_best_first(found: list[Window]) -> None:
    answers = merged(found)
    best = scores(answers)
    assert best == sorted(best, reverse=True)
    assert all(0 <= score <= 1 for score in [*best, answers.none_probability])
    assert sum(best) + answers.none_probability <= 1 + 1e-9


@given(windows(most=1))
def test_one_window_is_taken_at_its_word(found: list[Window]) -> None:
    ((none, spans),) = found
    answers = merged(found)
    assert answers.none_probability == none
    expected = sorted(sum(p for text, _, p in spans if text == each) for each in {text for text, _, _ in spans})
    assert scores(answers) == pytest.approx(expected[::-1], abs=1e-12)


@given(windows(), st.data())
def test_windows_that_are_poorer_than_the_best_change_neither_its_score_nor_that_of_no_answer(
    found: list[Window], data: st.DataObject
) -> None:
    before = merged(found)
    best = scores(before)[0]
    peak = min(best, 1 - before.none_probability)
    filler = data.draw(windows(least=20, most=40, peak=peak))
    after = merged([*found, *filler])
    # By no more than what is lost to rounding.
    assert after.none_probability == pytest.approx(before.none_probability, abs=1e-9)
    assert scores(after)[0] == pytest.approx(best, abs=1e-9)


@given(windows(), st.integers(2, 5))
def test_a_repeated_context_keeps_its_scores_and_its_answers_stay_distinct(found: list[Window], times: int) -> None:
    shifted = [
        (none, [(text, (start + 1000 * copy, end + 1000 * copy), p) for text, (start, end), p in spans])
        for copy in range(times)
        for none, spans in found
    ]
    once, often = merged(found), merged(shifted)
    assert often.none_probability == once.none_probability
    assert scores(often) == pytest.approx(scores(once), abs=1e-12)
    for few, many in zip(once.best(20), often.best(20), strict=True):
        assert len(many.places) == times * len(few.places)
        assert many.places[0] == few.places[0]


@given(windows(), st.randoms(use_true_random=False))
def test_the_order_of_windows_does_not_matter(found: list[Window], chance: random.Random) -> None:
    shuffled = chance.sample(found, len(found))
    assert merged(shuffled).best(20) == merged(found).best(20)
    assert merged(shuffled).none_probability == merged(found).none_probability


@given(windows(), st.data())
def test_no_answers_score_falls_where_its_place_becomes_likelier(found: list[Window], data: st.DataObject) -> None:
    number = data.draw(st.integers(0, len(found) - 1))
    none, spans = found[number]
    text, place, probability = spans[0]
    more = data.draw(st.floats(0, max(0.0, none)))
    raised = [*found[:number], (none - more, [(text, place, probability + more), *spans[1:]]), *found[number + 1 :]]
    before = {each.places[0].start: each for each in merged(found).best(20)}
    old = max(each.score for each in before.values() if place[0] in {p.start for p in each.places})
    new = max(each.score for each in merged(raised).best(20) if place[0] in {p.start for p in each.places})
    assert new >= old - 1e-9


def test_equal_texts_of_one_window_add_up_and_those_of_several_do_not() -> None:
    answers = merged([(0.1, [("1871", (5, 9), 0.5), ("1871", (50, 54), 0.4)]), (0.3, [("1871", (900, 904), 0.7)])])
    (best,) = answers.best(5)
    assert best.score == pytest.approx(0.9)
    assert [place.start for place in best.places] == [900, 5, 50]


def test_where_windows_contradict_each_other_the_lesser_answer_has_what_is_left() -> None:
    answers = merged([(0.1, [("a", (0, 1), 0.9)]), (0.2, [("b", (5, 6), 0.8)])])
    assert scores(answers) == pytest.approx([0.9, 0.0])


def test_what_is_remembered_does_not_grow_with_the_context() -> None:
    answers = MergedAnswers()
    for number in range(2000):
        answers.add(
            0.5, [(f"text {number}", (number, number + 1), 1e-6 * number), ("the one", (number, number + 1), 0.4)]
        )
    assert [each.score for each in answers.best(3)] == pytest.approx([0.4, 0.001999 + 0.0, 0.001998], abs=1e-9)
    assert len(answers.best(1)[0].places) == MOST_PLACES
    assert len(answers._found) <= 640
