"""The closed form against the enumeration of every allowed tag sequence."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.crf import BEGIN, INSIDE, OUTSIDE, SpanCRF

NO_ANSWER = (-1, -1)


def crf_of(seed: int, max_tokens: int) -> SpanCRF:
    torch.manual_seed(seed)
    crf = SpanCRF(max_tokens).requires_grad_(False)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.normal_()
    return crf


def path_score(crf: SpanCRF, emissions: torch.Tensor, tags: tuple[int, ...]) -> float:
    """start + emissions + transitions + end, term by term."""
    score = sum(float(emissions[place, tag]) for place, tag in enumerate(tags))
    score += sum(float(crf.transition[pair]) for pair in itertools.pairwise(tags))
    return score + float(crf.start[tags[0]]) + float(crf.end[tags[-1]]) if tags else 0.0


def enumerated(crf: SpanCRF, emissions: torch.Tensor, begin: int, end: int) -> dict[tuple[int, int], float]:
    """Probability of every allowed span, and of none, from all 3^n tag sequences."""
    scores: dict[tuple[int, int], float] = {}
    for tags in itertools.product((OUTSIDE, BEGIN, INSIDE), repeat=end - begin):
        inside = [place for place, tag in enumerate(tags) if tag != OUTSIDE]
        if not inside:
            span = NO_ANSWER
        else:
            first, behind = inside[0], inside[-1] + 1
            run = tags[first:behind]
            if run != (BEGIN, *[INSIDE] * (len(run) - 1)) or len(run) > crf.max_tokens:
                continue
            span = (begin + first, begin + behind)
        scores[span] = path_score(crf, emissions[begin:end], tags)
    total = math.log(sum(math.exp(score) for score in scores.values()))
    return {span: math.exp(score - total) for span, score in scores.items()}


@st.composite
def problems(draw: st.DrawFn) -> tuple[int, int, int, int, int]:
    size = draw(st.integers(1, 8))
    begin = draw(st.integers(0, size))
    end = draw(st.integers(begin, min(size, begin + 6)))
    return draw(st.integers(0, 10_000)), draw(st.integers(1, 9)), size, begin, end


@given(problems())
@settings(max_examples=80, deadline=None)
def test_probabilities_losses_and_best_spans_are_the_enumerations(problem: tuple[int, int, int, int, int]) -> None:
    seed, max_tokens, size, begin, end = problem
    crf = crf_of(seed, max_tokens)
    emissions, context = 2 * torch.randn(1, size, 3), torch.tensor([[begin, end]])
    expected = enumerated(crf, emissions[0], begin, end)

    none, spans = crf.log_probabilities(emissions, context)
    assert float(none.exp() + spans.exp().sum()) == pytest.approx(1, abs=1e-5)
    assert int((spans > -math.inf).sum()) == len(expected) - 1
    for span, probability in expected.items():
        loss = float(crf.nll(emissions, context, torch.tensor([span])))
        assert math.exp(-loss) == pytest.approx(probability, rel=1e-4)

    found = crf.best(emissions, context, count=1_000)
    assert float(found.none) == pytest.approx(expected.pop(NO_ANSWER), rel=1e-4)
    ranked = sorted(expected.values(), reverse=True)
    assert found.probability[0, : len(ranked)].tolist() == pytest.approx(ranked, rel=1e-4)
    assert not found.probability[0, len(ranked) :].any()
    for first, behind, probability in zip(found.start[0], found.end[0], found.probability[0, : len(ranked)]):  # noqa: B905
        assert expected[int(first), int(behind)] == pytest.approx(float(probability), rel=1e-4)


def test_rows_of_a_batch_do_not_meet() -> None:
    crf, emissions = crf_of(3, 4), torch.randn(3, 12, 3)
    contexts = torch.tensor([[2, 12], [0, 5], [7, 7]])
    answers = torch.tensor([[4, 8], [-1, -1], [-1, -1]])
    together = crf.nll(emissions, contexts, answers)
    for row in range(3):
        one = slice(row, row + 1)
        torch.testing.assert_close(crf.nll(emissions[one], contexts[one], answers[one]), together[one])
        cut = int(contexts[row, 1])
        if cut:
            shorter = crf.nll(emissions[one, :cut], contexts[one], answers[one])
            torch.testing.assert_close(shorter, together[one])
    assert float(together[2]) == pytest.approx(0, abs=1e-6), "an empty context has no span"


def test_long_contexts_keep_their_precision() -> None:
    """2,048 tokens with large scores: against float64, term by term."""
    crf, emissions = crf_of(5, 48), 20 * torch.randn(1, 2_048, 3)
    context = torch.tensor([[0, 2_048]])
    exact = crf_of(5, 48).double()
    tags = [OUTSIDE] * 2_000 + [BEGIN] + [INSIDE] * 20 + [OUTSIDE] * 27
    empty = [OUTSIDE] * 2_048
    difference = path_score(exact, emissions[0].double(), tuple(tags)) - path_score(
        exact, emissions[0].double(), tuple(empty)
    )
    assert float(crf.span_scores(emissions, context)[0, 2_000, 20]) == pytest.approx(difference, abs=1e-3)


def test_an_answer_beyond_the_limit_counts_by_its_beginning() -> None:
    crf, emissions, context = crf_of(6, 3), torch.randn(1, 10, 3), torch.tensor([[0, 10]])
    longer, cut = (crf.nll(emissions, context, torch.tensor([[2, end]])) for end in (8, 5))
    torch.testing.assert_close(longer, cut)


def test_bf16_emissions_are_summed_in_float32() -> None:
    crf, emissions, context = crf_of(7, 8), torch.randn(2, 30, 3).bfloat16(), torch.tensor([[0, 30], [3, 9]])
    assert crf.span_scores(emissions, context).dtype == torch.float32
    torch.testing.assert_close(crf.span_scores(emissions, context), crf.span_scores(emissions.float(), context))
