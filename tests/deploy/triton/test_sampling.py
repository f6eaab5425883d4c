"""Sampling against plain references: which tokens may be drawn, how often, and that batch mates change nothing."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.triton.protocol import FinishReason, Sampling
from deploy.triton.sampling import (
    NO_TOKEN,
    Sampler,
    TokenRules,
    adjust_scores,
    choose_tokens,
    largest,
    repeating_tokens,
)

END = 2
RULES = TokenRules.of(range(16), END)
SEEDS = st.integers(0, 2**32)


def sampler(**fields) -> Sampler:
    return Sampler(Sampling(max_new_tokens=64, **fields), RULES)


def random_scores(seed: int, rows: int = 1, size: int = 4000, scale: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal((rows, size)) * scale).astype(np.float32)


def kept_tokens(scores: np.ndarray, temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    """The plain definition: penalised scores → probabilities of the tokens that may be drawn."""
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    order = order[:top_k] if top_k else order
    mass = np.exp((scores[order].astype(np.float64) - scores.max()) / temperature)
    probabilities = mass / mass.sum()
    size = int(np.searchsorted(np.cumsum(probabilities), top_p - 1e-12)) + 1 if top_p < 1 else len(order)
    probabilities = probabilities[:size] / probabilities[:size].sum()
    return dict(zip(order[:size], probabilities.tolist(), strict=True))


@given(SEEDS, st.integers(1, 64), st.booleans())
def test_largest_is_the_head_of_a_sort(seed: int, count: int, coarse: bool) -> None:
    values = random_scores(seed)[0]
    values = np.round(values) if coarse else values
    expected = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    assert largest(values, count).tolist() == sorted(expected)


def test_largest_takes_all_where_there_are_no_more() -> None:
    assert largest(np.array([3.0, 1.0, 2.0]), 7).tolist() == [0, 1, 2]


@given(SEEDS, st.sampled_from([0, 1, 5, 300, 5000]), st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]), SEEDS)
def test_only_kept_tokens_are_drawn(seed: int, top_k: int, top_p: float, draw_seed: int) -> None:
    scores = random_scores(seed, scale=4.0 if seed % 2 else 0.3)
    allowed = kept_tokens(scores[0], 0.8, top_k, top_p)
    row = sampler(temperature=0.8, top_k=top_k, top_p=top_p, seed=draw_seed)
    for _ in range(5):
        assert row.draw(scores[0]) in allowed


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (6, 1.0), (0, 0.8), (8, 0.7)])
def test_tokens_are_drawn_as_often_as_they_should(top_k: int, top_p: float) -> None:
    scores = random_scores(3, size=12, scale=1.0)
    expected = kept_tokens(scores[0], 1.3, top_k, top_p)
    row = sampler(temperature=1.3, top_k=top_k, top_p=top_p, seed=17)
    draws = 20_000
    counts = Counter(row.draw(scores[0]) for _ in range(draws))
    assert set(counts) <= set(expected)
    for token, probability in expected.items():
        assert counts[token] / draws == pytest.approx(probability, abs=4 * (probability / draws) ** 0.5)


@given(SEEDS, SEEDS)
def test_the_draw_is_the_inverse_of_the_cumulated_probabilities(seed: int, draw_seed: int) -> None:
    scores = random_scores(seed)[0]
    mass = np.exp(scores - scores.max()).astype(np.float64)
    uniform = np.random.Generator(np.random.Philox(key=draw_seed)).random()
    expected = np.searchsorted(np.cumsum(mass), uniform * mass.sum(), side="right")
    assert sampler(seed=draw_seed).draw(scores) == expected


@given(SEEDS, st.integers(2, 6))
def test_a_row_draws_the_same_alone_and_in_a_batch(seed: int, rows: int) -> None:
    fields = [
        {"temperature": 0.0},
        {"seed": 1},
        {"top_k": 40, "seed": 2, "repetition_penalty": 1.3},
        {"top_p": 0.9, "seed": 3, "temperature": 0.7},
        {"temperature": 0.0, "no_repeat_ngram": 2, "min_new_tokens": 4},
        {"top_k": 9, "top_p": 0.5, "seed": 5},
    ][:rows]
    together, alone = ([sampler(**each) for each in fields] for _ in range(2))
    for step in range(6):
        scores = random_scores(seed + step, rows, size=1500)
        tokens = choose_tokens(scores.copy(), together)
        for index, each in enumerate(alone):
            assert choose_tokens(scores[index : index + 1].copy(), [each])[0] == tokens[index]
            assert together[index].accept(int(tokens[index])) is each.accept(int(tokens[index]))


def test_equal_seeds_give_equal_tokens_and_others_do_not() -> None:
    scores = random_scores(0, scale=0.5)[0]
    first, second, other = (
        [row.draw(scores) for _ in range(20)] for row in (sampler(seed=7), sampler(seed=7), sampler(seed=8))
    )
    assert first == second != other
    assert len(set(first)) > 1


@given(SEEDS, st.lists(st.integers(16, 30), max_size=30), st.floats(0.5, 2.0))
def test_repetition_penalty_is_the_plain_formula(seed: int, tokens: list[int], penalty: float) -> None:
    scores = random_scores(seed, size=40)[0]
    expected = scores.copy()
    for token in set(tokens):
        factor = np.float32(penalty)
        expected[token] = scores[token] * factor if scores[token] < 0 else scores[token] / factor
    adjust_scores(scores, np.array(tokens, np.int64), Sampling(max_new_tokens=64, repetition_penalty=penalty), END)
    assert np.array_equal(scores, expected)


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 5))
def test_repeating_tokens_are_those_that_complete_a_known_ngram(tokens: list[int], size: int) -> None:
    known = {tuple(tokens[start : start + size]) for start in range(len(tokens) - size + 1)}
    prefix = tuple(tokens[len(tokens) - size + 1 :])
    expected = {token for token in range(4) if len(prefix) == size - 1 and (*prefix, token) in known}
    assert set(repeating_tokens(np.array(tokens, np.int64), size).tolist()) == expected


def test_the_end_waits_for_the_least_number_of_tokens() -> None:
    row = sampler(temperature=0.0, min_new_tokens=2)
    reasons = []
    for _ in range(3):
        scores = np.zeros((1, 40), np.float32)
        scores[0, [END, 20]] = [5.0, 4.0]
        RULES.apply(scores)
        reasons.append(row.accept(int(choose_tokens(scores, [row])[0])))
    assert reasons == [FinishReason.RUNNING, FinishReason.RUNNING, FinishReason.STOP]
    assert row.tokens == [20, 20]


def test_special_tokens_are_never_chosen() -> None:
    scores = np.zeros((2, 40), np.float32)
    scores[:, :16] = 100.0
    RULES.apply(scores)
    assert choose_tokens(scores, [sampler(temperature=0.0), sampler()]).tolist() == [END, END]


def test_a_row_ends_at_its_length() -> None:
    row = Sampler(Sampling(max_new_tokens=2), RULES)
    assert [row.accept(20), row.accept(21)] == [FinishReason.RUNNING, FinishReason.LENGTH]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_row_without_finite_scores_ends_with_an_error(temperature: float, value: float) -> None:
    good, bad = sampler(temperature=temperature), sampler(temperature=temperature)
    scores = random_scores(1, rows=2)
    scores[1] = value
    tokens = choose_tokens(scores, [good, bad])
    assert tokens[1] == NO_TOKEN != tokens[0]
    assert bad.accept(int(tokens[1])) is FinishReason.ERROR


def test_a_tiny_temperature_is_greedy() -> None:
    scores = random_scores(1)
    assert choose_tokens(scores.copy(), [sampler(temperature=1e-9)])[0] == scores[0].argmax()
