"""Beam search against a search of all sequences, on a random chain over a tiny vocabulary."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.triton.beams import BeamSearch
from deploy.triton.protocol import FinishReason, Sampling
from deploy.triton.rules import TokenRules, rules_of

END, VOCABULARY, LENGTH = 0, 4, 3
RULES = TokenRules.of([], END)
START = VOCABULARY


def chain(seed: int) -> np.ndarray:
    """Scores of the next token after each token; the last row is for the start."""
    return np.random.default_rng(seed).standard_normal((VOCABULARY + 1, VOCABULARY)).astype(np.float32) * 2


def search(scores: np.ndarray, sampling: Sampling) -> tuple[list[int], FinishReason]:
    """Run a search as the engine does: a row's scores follow from the token it was fed."""
    beams, fed = BeamSearch(sampling, RULES), np.full(sampling.num_beams, START)
    paths: list[list[int]] = [[] for _ in range(sampling.num_beams)]
    while True:
        step = beams.advance(scores[fed])
        paths = [[*paths[parent], token] for parent, token in zip(step.parents, step.tokens, strict=True)]
        if step.finish_reason is not FinishReason.RUNNING:
            return beams.tokens, step.finish_reason
        fed = step.tokens


def all_answers(scores: np.ndarray, sampling: Sampling) -> dict[tuple[tuple[int, ...], FinishReason], float]:
    """Every answer and its rank, one token at a time."""

    def log_probability(path: tuple[int, ...]) -> float:
        total = 0.0
        for position, token in enumerate(path):
            row = scores[path[position - 1] if position else START]
            logs = (row - np.log(np.exp(row).sum())).astype(np.float32)
            for rule in rules_of(sampling, END):
                rule.apply(logs, np.array(path[:position], np.int64))
            total += float(logs[token])
        return total

    answers = {}
    letters = range(1, VOCABULARY)
    for size in range(sampling.max_new_tokens + 1):
        for path in itertools.product(letters, repeat=size):
            cut = size == sampling.max_new_tokens
            steps = path if cut else (*path, END)
            rank = log_probability(steps) / len(steps) ** sampling.length_penalty
            answers[path, FinishReason.LENGTH if cut else FinishReason.STOP] = rank
    return answers


@settings(max_examples=60)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 0.6, 1.0, 2.0]),
    st.integers(0, 2),
    st.sampled_from([0, 2]),
    st.sampled_from([1.0, 1.4]),
)
def test_as_many_beams_as_prefixes_find_the_best_answer(
    seed: int, length_penalty: float, least: int, ngram: int, penalty: float
) -> None:
    sampling = Sampling(
        max_new_tokens=LENGTH,
        min_new_tokens=least,
        num_beams=(VOCABULARY - 1) ** LENGTH,
        length_penalty=length_penalty,
        no_repeat_ngram=ngram,
        repetition_penalty=penalty,
    )
    scores = chain(seed)
    answers = all_answers(scores, sampling)
    tokens, reason = search(scores, sampling)
    assert answers[tuple(tokens), reason] == pytest.approx(max(answers.values()), abs=1e-5)


@given(st.integers(0, 10_000))
def test_the_answer_is_at_least_as_likely_as_the_greedy_one_with_two_tokens(seed: int) -> None:
    scores = chain(seed)
    sampling = Sampling(max_new_tokens=2, num_beams=4, length_penalty=0.0, min_new_tokens=2)
    answers = all_answers(scores, sampling)
    first = int(scores[START, 1:].argmax()) + 1
    second = int(scores[first, 1:].argmax()) + 1
    tokens, reason = search(scores, sampling)
    assert answers[tuple(tokens), reason] >= answers[(first, second), FinishReason.LENGTH] - 1e-5


def test_no_pair_of_tokens_occurs_twice() -> None:
    scores = np.zeros((VOCABULARY + 1, VOCABULARY), np.float32)
    scores[:, 1] = 5.0
    tokens, _ = search(scores, Sampling(max_new_tokens=6, min_new_tokens=6, num_beams=3, no_repeat_ngram=2))
    pairs = list(itertools.pairwise(tokens))
    assert len(tokens) == 6
    assert len(set(pairs)) == len(pairs)


def test_the_search_stops_early() -> None:
    scores = np.full((VOCABULARY + 1, VOCABULARY), -9.0, np.float32)
    scores[:, END] = 5.0
    scores[START] = [-9.0, 2.0, 1.0, 0.0]
    beams = BeamSearch(Sampling(max_new_tokens=400, num_beams=2), RULES)
    fed, steps, reason = np.full(2, START), 0, FinishReason.RUNNING
    while reason is FinishReason.RUNNING:
        step = beams.advance(scores[fed])
        fed, reason, steps = step.tokens, step.finish_reason, steps + 1
    assert (beams.tokens, reason) == ([1], FinishReason.STOP)
    assert steps < 5


def test_rows_name_the_beams_they_continue() -> None:
    beams = BeamSearch(Sampling(max_new_tokens=5, num_beams=2), RULES)
    # All rows are alike at first: both beams continue row 0, however likely row 1 looks.
    step = beams.advance(np.array([[-9, 2, 1, -9], [-9, 7, 7, 7]], np.float32))
    assert step.tokens.tolist() == [1, 2]
    assert step.parents.tolist() == [0, 0]
    # Row 0 is likely to end, row 1 has two ways on: both beams continue row 1.
    step = beams.advance(np.array([[9, -9, -9, -9], [-99, 9, -99, 9]], np.float32))
    assert step.tokens.tolist() == [1, 3]
    assert step.parents.tolist() == [1, 1]


def test_beams_without_a_finite_score_end_with_an_error() -> None:
    beams = BeamSearch(Sampling(max_new_tokens=5, num_beams=2), RULES)
    step = beams.advance(np.full((2, VOCABULARY), np.nan, np.float32))
    assert step.finish_reason is FinishReason.ERROR
    assert beams.tokens == []
