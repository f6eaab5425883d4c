"""Sampling against plain references: which tokens may be drawn, how often, and that batch mates change nothing."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.triton.candidates import largest
from deploy.triton.protocol import FinishReason, Sampling
from deploy.triton.rules import TokenRules, repeating_tokens, rules_of
from deploy.triton.sampling import NO_TOKEN, LogProbabilities, Sampler, choose

END = 2
RULES = TokenRules.of(range(16), END)
SEEDS = st.integers(0, 2**32)


def sampler(**fields) -> Sampler:
    return Sampler(Sampling(max_new_tokens=64, **fields), RULES)


def choose_tokens(scores_NV: np.ndarray, samplers: list[Sampler]) -> np.ndarray:
    """Tokens of rows whose banned ones are taken out already, or not at all."""
    return choose(scores_NV, samplers, TokenRules.of([], END)).tokens_N


def adjust_scores(scores_V: np.ndarray, tokens: np.ndarray, sampling: Sampling, end: int) -> None:
    for rule in rules_of(sampling, end):
        rule.apply(scores_V, tokens)


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


def told(scores: np.ndarray, count: int | None, **fields) -> tuple[int, LogProbabilities | None]:
    """A row's token, and what is told of its probability."""
    row = Sampler(Sampling(max_new_tokens=64, **fields), RULES, alternatives=count)
    choices = choose(scores.copy(), [row], RULES)
    return int(choices.tokens_N[0]), choices.log_probabilities.get(0)


@given(SEEDS, st.integers(0, 30), st.booleans())
def test_log_probabilities_are_those_of_the_raw_scores(seed: int, count: int, coarse: bool) -> None:
    scores = random_scores(seed)
    scores = np.round(scores) if coarse else scores
    exact = scores[0].astype(np.float64)
    exact -= exact.max() + np.log(np.exp(exact - exact.max()).sum())
    fields = {"temperature": 0.7, "top_k": 5, "repetition_penalty": 1.5, "min_new_tokens": 3, "seed": seed}
    token, found = told(scores, count, **fields)
    assert found is not None
    assert found.chosen == pytest.approx(exact[token], abs=1e-5)
    order = sorted(range(len(exact)), key=lambda index: (-scores[0, index], index))[:count]
    assert found.ids.tolist() == order, "banned tokens included: what the network holds likely, not what may be chosen"
    np.testing.assert_allclose(found.values, exact[order], atol=1e-5)
    assert token == told(scores, None, **fields)[0], "to ask changes no answer"


def test_log_probabilities_are_told_to_those_who_ask_and_have_a_token() -> None:
    rows = [
        sampler(temperature=0.0),
        Sampler(Sampling(max_new_tokens=4), RULES, alternatives=2),
        Sampler(Sampling(max_new_tokens=4, temperature=0.0), RULES, alternatives=0),
        Sampler(Sampling(max_new_tokens=4), RULES, alternatives=1),
    ]
    scores = random_scores(2, rows=5)
    scores[3] = np.nan
    choices = choose(scores, [*rows, None], RULES)
    assert choices.log_probabilities.keys() == {1, 2}
    assert [len(choices.log_probabilities[place].ids) for place in (1, 2)] == [2, 0]


@given(SEEDS, SEEDS)
def test_a_chain_of_all_rules_is_its_rules_one_after_the_other(seed: int, draw_seed: int) -> None:
    """Plain definitions, one a rule, in the order that the modules promise."""
    answer = np.random.default_rng(seed).integers(16, 60, 12).tolist()
    scores = random_scores(seed, size=60)[0]
    fields = {"repetition_penalty": 1.7, "no_repeat_ngram": 2, "min_new_tokens": 20, "top_k": 9, "top_p": 0.8}
    expected = scores.astype(np.float32)
    expected[[token for token in range(16) if token != END]] = -np.inf
    for token in set(answer):
        expected[token] = (
            expected[token] * np.float32(1.7) if expected[token] < 0 else expected[token] / np.float32(1.7)
        )
    for first, second in itertools.pairwise(answer):
        if first == answer[-1]:
            expected[second] = -np.inf
    expected[END] = -np.inf
    allowed = kept_tokens(expected, 0.6, 9, 0.8)
    row = sampler(temperature=0.6, seed=draw_seed, **fields)
    row.tokens.extend(answer)
    assert int(choose(scores[None].copy(), [row], RULES).tokens_N[0]) in allowed
