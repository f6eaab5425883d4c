"""Lengths of answers: quantiles against simulated truth, answers that were cut among them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.triton.protocol import Task
from service.batching.lengths import GUESSED_MEDIAN, AnswerLengths

FAR = 4096


def write(lengths: AnswerLengths, length: int, *, limit: int = FAR, patience: int = FAR, source: int = 30) -> None:
    """One answer that would have `length` tokens, cut by a limit or by a client that leaves."""
    answer = lengths.begin(Task.GENERATION, source, limit)
    answer.generated = min(length, limit, patience)
    lengths.end(answer, ended=length < min(limit, patience))


def median(lengths: AnswerLengths, source: int = 30) -> int:
    return lengths.quantile(Task.GENERATION, source, 0.5, FAR)


@settings(max_examples=15)
@given(st.integers(10, 300), st.integers(0, 2**32 - 1), st.floats(0.6, 3.0))
def test_quantiles_are_those_of_the_truth_however_many_answers_were_cut(mean: int, seed: int, cut: float) -> None:
    lengths, rng = AnswerLengths(), np.random.default_rng(seed)
    for _ in range(1500):
        # Half of them may not be longer than `cut` means; clients leave others at any time.
        limit = math.ceil(mean * cut) if rng.random() < 0.5 else FAR
        write(lengths, int(rng.geometric(1 / mean)), limit=limit, patience=math.ceil(rng.exponential(3 * mean)))
    for q in (0.25, 0.5, 0.75):
        truth = math.log(1 - q) / math.log(1 - 1 / mean)
        assert lengths.quantile(Task.GENERATION, 30, q, FAR) == pytest.approx(truth, rel=0.3, abs=2)


def test_answers_that_were_cut_do_not_count_as_ended() -> None:
    lengths = AnswerLengths()
    for number in range(400):
        write(lengths, 200, limit=16 if number % 2 else FAR)
    assert 180 <= median(lengths) <= 215


def test_answers_that_are_being_written_count_as_far_as_they_came() -> None:
    short, watched = AnswerLengths(), AnswerLengths()
    for lengths in (short, watched):
        for _ in range(10):
            write(lengths, 20)
    steps = [0]
    for _ in range(30):
        watched.begin(Task.GENERATION, 30, FAR).steps = lambda: steps[0]
    steps[0] = 500
    watched.observe(Task.GENERATION, 30, 20, ended=True)
    for _ in range(8):
        watched.begin(Task.SUMMARY, 30, FAR)
    assert median(short) < 30
    assert median(watched) > 500


def test_what_an_answer_already_has_is_known() -> None:
    lengths = AnswerLengths()
    for number in range(400):
        write(lengths, 10 if number % 4 else 300)
    assert median(lengths) <= 11
    assert 250 <= lengths.quantile(Task.GENERATION, 30, 0.5, FAR, generated=50) <= 330


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.booleans()), max_size=60), st.integers(1, 2000), st.integers(0, 1999)
)
def test_quantiles_rise_and_stay_between_what_is_written_and_the_limit(
    answers: list[tuple[int, bool]], limit: int, generated: int
) -> None:
    lengths, generated = AnswerLengths(), min(generated, limit)
    for length, ended in answers:
        lengths.observe(Task.SUMMARY, 10, length, ended)
    found = [lengths.quantile(Task.SUMMARY, 10, q, limit, generated) for q in (0.01, 0.3, 0.5, 0.9, 0.999)]
    assert found == sorted(found)
    assert max(1, generated) <= found[0]
    assert found[-1] <= limit


def test_before_the_first_answer_a_guess_stands_in() -> None:
    assert median(AnswerLengths()) == pytest.approx(GUESSED_MEDIAN, abs=2)
    assert AnswerLengths().quantile(Task.GENERATION, 30, 0.9, 128) == 128


def test_a_class_with_few_answers_leans_on_its_task() -> None:
    lengths = AnswerLengths()
    for _ in range(200):
        write(lengths, 30, source=30)
    assert median(lengths, source=2000) == pytest.approx(30, abs=4)
    for _ in range(60):
        write(lengths, 200, source=2000)
    assert median(lengths, source=2000) == pytest.approx(200, rel=0.15)
    assert median(lengths, source=30) == pytest.approx(30, abs=4)


def test_what_changes_is_followed() -> None:
    lengths = AnswerLengths()
    for _ in range(1000):
        write(lengths, 20)
    for _ in range(500):
        write(lengths, 120)
    assert median(lengths) > 100


def test_calibration_is_the_share_of_answers_within_a_quantile() -> None:
    lengths, rng = AnswerLengths(), np.random.default_rng(4)
    for _ in range(2000):
        write(lengths, int(rng.geometric(1 / 80)), limit=400)
    assert lengths.calibration[0.5] == pytest.approx(0.5, abs=0.15)
    assert lengths.calibration[0.9] == pytest.approx(0.9, abs=0.1)
    for _ in range(40):
        write(lengths, 399, limit=400)
    assert lengths.calibration[0.9] < 0.75


def test_an_answer_ends_once() -> None:
    lengths = AnswerLengths()
    answer = lengths.begin(Task.GENERATION, 30, FAR)
    answer.generated = 7
    lengths.end(answer, ended=True)
    before = lengths.state()
    lengths.end(answer, ended=False)
    assert lengths.state() == before


def test_what_was_learnt_can_be_taken_along() -> None:
    old, new = AnswerLengths(), AnswerLengths()
    for number in range(100):
        write(old, 40 + number % 7, source=5 if number % 2 else 500)
    new.restore(old.state())
    assert [median(new, source) for source in (5, 500)] == [median(old, source) for source in (5, 500)]


def damage_edges(state: dict[str, Any]) -> None:
    state["edges"][3] += 1


def damage_counts(state: dict[str, Any]) -> None:
    state["tasks"]["GENERATION"][1][2] = 1e9


def damage_names(state: dict[str, Any]) -> None:
    state["tasks"]["POETRY"] = state["tasks"].pop("GENERATION")


@pytest.mark.parametrize("damage", [damage_edges, damage_counts, damage_names])
def test_a_damaged_state_is_refused_and_changes_nothing(damage: Any) -> None:
    lengths = AnswerLengths()
    write(lengths, 30)
    state, before = lengths.state(), lengths.state()
    damage(state)
    with pytest.raises((ValueError, KeyError)):
        lengths.restore(state)
    assert lengths.state() == before
