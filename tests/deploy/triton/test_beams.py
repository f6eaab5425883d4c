"""Beam search against a search of all sequences, on a random chain over a tiny vocabulary."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Chains:
    """Texts that repeat one of a few letters and may end after each of them, so that few beams follow all of them."""

    letters: int
    longest: int
    scores: np.ndarray
    """[letter, length, (end, go on)]; at length 0 only the first letter's end counts."""

    @classmethod
    def random(cls, seed: int, letters: int, longest: int) -> Chains:
        random = np.random.default_rng(seed)
        return cls(letters, longest, random.standard_normal((letters, longest, 2)).astype(np.float32) * 2)

    def row(self, path: list[int]) -> np.ndarray:
        """Scores of the next token."""
        row = np.full(self.letters + 1, -np.inf, np.float32)
        if path:
            row[[END, path[0]]] = self.scores[path[0] - 1, len(path)]
        else:
            row[END], row[1:] = self.scores[0, 0, 0], self.scores[:, 0, 1]
        return row

    def log_probability(self, path: tuple[int, ...]) -> float:
        """Of a path, its end included if it has one."""
        total = 0.0
        for position, token in enumerate(path):
            row = self.row(list(path[:position])).astype(np.float64)
            total += float(row[token] - np.log(np.exp(row).sum()))
        return total

    def answers(self, size: int) -> list[tuple[tuple[int, ...], FinishReason]]:
        """All of `size` letters."""
        reason = FinishReason.LENGTH if size == self.longest else FinishReason.STOP
        return [(path, reason) for path in {(letter,) * size for letter in range(1, self.letters + 1)}]

    def rank(self, answer: tuple[tuple[int, ...], FinishReason], penalty: float) -> float:
        """As the search ranks it."""
        path, reason = answer
        steps = path if reason is FinishReason.LENGTH else (*path, END)
        return self.log_probability(steps) / len(steps) ** penalty


def plain_search(chains: Chains, beams: int, penalty: float) -> tuple[float, int]:
    """The best rank by the rule that the module states, and the steps it took; nothing is ever left out."""
    ranks: list[float] = []
    for step in range(1, chains.longest + 1):
        ranks += [chains.rank(answer, penalty) for answer in chains.answers(step - 1)]
        if step < chains.longest:
            living = [chains.log_probability((letter,) * step) for letter in range(1, chains.letters + 1)]
            best_answers = sorted(ranks, reverse=True)[:beams]
            if len(best_answers) == beams and best_answers[-1] >= max(living) / step**penalty:
                return max(ranks), step
    return max(ranks + [chains.rank(answer, penalty) for answer in chains.answers(chains.longest)]), chains.longest


@pytest.mark.parametrize(("letters", "beams"), [(1, 2), (1, 3), (2, 4), (2, 5)])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 0.6, 1.0, 2.0])
def test_the_search_stops_as_its_rule_says(letters: int, beams: int, penalty: float) -> None:
    """Where length is not rewarded, no text that was never looked at can be better: the answer is the best of all."""
    took, missed = Counter[int](), 0
    for seed in range(40):
        chains = Chains.random(seed, letters, longest=6)
        search = BeamSearch(Sampling(max_new_tokens=6, num_beams=beams, length_penalty=penalty), RULES)
        paths: list[list[int]] = [[] for _ in range(beams)]
        reason, steps = FinishReason.RUNNING, 0
        while reason is FinishReason.RUNNING:
            step = search.advance(np.stack([chains.row([token for token in path if token]) for path in paths]))
            paths = [[*paths[parent], token] for parent, token in zip(step.parents, step.tokens.tolist(), strict=True)]
            reason, steps = step.finish_reason, steps + 1
        found = chains.rank((tuple(search.tokens), reason), penalty)
        assert (found, steps) == pytest.approx(plain_search(chains, beams, penalty), abs=1e-5)
        took[steps] += 1
        best = max(chains.rank(answer, penalty) for size in range(7) for answer in chains.answers(size))
        missed += found < best - 1e-5
    assert min(took) < 6, "some searches stop early"
    assert took[6], "and some do not"
    if penalty <= 0:
        assert not missed
