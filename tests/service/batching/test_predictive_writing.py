"""What the predictive policy promises for answers that are written token by token, in simulated time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching.lengths import AnswerLengths
from service.batching.pending import Pending
from service.batching.policies import Decision, Immediate, Policy, Predictive, View
from service.batching.simulation.generation import Prompts, WrittenOutcome
from service.errors import ServiceError
from tests.service.batching.written_prompts import MACHINE, beside_flex, only, prompts, run


def test_under_overload_it_answers_many_times_as_much_in_time_as_whoever_looks_at_no_deadline() -> None:
    given = prompts(1.2)
    assert run(given).in_time.mean() >= 4 * run(given, Immediate()).in_time.mean()


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_below_overload_it_answers_no_less_in_time(load: float) -> None:
    given = prompts(load)
    assert run(given).in_time.mean() >= run(given, Immediate()).in_time.mean() - 0.02


def test_priority_is_in_time_beside_flex_at_more_than_the_engine_can_do_and_flex_does_not_starve() -> None:
    given, urgent = beside_flex(patience=20.0)
    outcome = run(given)
    assert outcome.in_time[urgent].mean() >= 0.98
    assert outcome.in_time[~urgent].all()
    # The overload lasts 37 s, and the engine needs 45 for all of it.
    assert (outcome.ended_s - given.arrivals_s)[~urgent].max() < 45
    assert run(given, Immediate()).in_time[urgent].mean() < 0.5


def test_flex_costs_priority_little_where_its_deadlines_are_near() -> None:
    given, urgent = beside_flex(patience=8.0)
    alone = run(only(given, urgent)).in_time.mean()
    assert run(given).in_time[urgent].mean() >= alone - 0.10
    assert run(given, Predictive(spares=False)).in_time[urgent].mean() < alone - 0.10


def attained(outcomes: Sequence[WrittenOutcome], since: int = 0) -> float:
    """Of all runs, leaving out the first prompts."""
    return float(np.mean([outcome.in_time[since:].mean() for outcome in outcomes]))


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_wrong_times_cost_little_and_are_corrected_within_100_batches(factor: float) -> None:
    several = [prompts(0.8, seed=seed) for seed in (1, 2)]
    right = [run(each) for each in several]
    wrong = [run(each, believed=MACHINE.times(factor)) for each in several]
    assert attained(wrong) >= attained(right) - 0.10
    assert attained(wrong, 100) >= attained(right, 100) - 0.03


@pytest.mark.parametrize("factor", [3.0, 1 / 3])
def test_wrong_lengths_cost_little_and_are_corrected_within_100_batches(factor: float) -> None:
    """Every answer before was three times as long, or as short."""
    several = [prompts(0.8, seed=seed) for seed in (1, 2)]
    right = [run(each, lengths=learnt(each, 1.0)) for each in several]
    wrong = [run(each, lengths=learnt(each, factor)) for each in several]
    assert attained(wrong) >= attained(right) - 0.10
    assert attained(wrong, 100) >= attained(right, 100) - 0.05


def learnt(given: Prompts, times: float) -> AnswerLengths:
    """What answers so many times as long have taught."""
    lengths = AnswerLengths()
    for task, tokens, answer in zip(given.tasks, given.tokens.tolist(), given.answers.tolist(), strict=True):
        lengths.observe(task, tokens, max(1, round(times * answer)), ended=True)
    return lengths


@settings(max_examples=15)
@given(st.floats(0.3, 4.0), st.integers(0, 5), st.sampled_from([0.0, 0.5]), st.sampled_from([2, 5, 32]))
def test_every_prompt_ends_once_and_no_slot_is_given_twice(load: float, seed: int, flex: float, slots: int) -> None:
    given = prompts(load, count=40, seed=seed, flex=flex)
    outcome = run(given, machine=replace(MACHINE, slots=slots))
    np.testing.assert_array_equal(outcome.in_time.astype(int) + outcome.late + outcome.rejected, 1)
    assert outcome.most_slots <= slots
    assert not (outcome.rejected & ~np.isnan(outcome.waited_s)).any()


@settings(max_examples=15)
@given(st.floats(0.5, 4.0), st.integers(0, 5))
def test_nobody_is_refused_whose_answer_could_have_been_in_time_alone(load: float, seed: int) -> None:
    """Lengths are known: clients insist on them. Whoever is refused could not be served by an empty engine."""
    given = prompts(load, count=40, seed=seed)
    given = replace(given, limits=given.answers, shortest=given.answers)
    watched = Watched()
    assert run(given, watched).rejected.sum() == len(watched.soonest_s)
    for index, soonest_s in watched.soonest_s.items():
        assert soonest_s + MACHINE.beside * given.alone_s(MACHINE)[index] > given.deadlines_s[index]


@dataclass(slots=True)
class Watched(Policy):
    """A policy whose refusals are looked into: when could the engine have begun with the request, had it gone next?"""

    policy: Predictive = field(default_factory=Predictive)
    soonest_s: dict[int, float] = field(default_factory=dict)

    def admit(self, request: Pending[int], view: View) -> ServiceError | None:
        error = self.policy.admit(request, view)
        if error is not None:
            self.soonest_s[request.payload] = _free_s(view, ())
        return error

    def decide(self, view: View) -> Decision:
        decision = self.policy.decide(view)
        for request, _ in decision.refused:
            self.soonest_s[request.payload] = _free_s(view, decision.batch)
        return decision


def _free_s(view: View, batch: Sequence[Pending[int]]) -> float:
    """When the prefills that are under way, and a batch that goes now, have ended."""
    sent = [(each.sent_s, each.requests) for each in view.running if each.waits]
    free_s = view.now_s
    for sent_s, requests in [*sent, (view.now_s, tuple(batch))]:
        if requests:
            seconds = MACHINE.prefill.predict_s(len(requests), max(each.tokens for each in requests))
            free_s = max(free_s, sent_s) + MACHINE.beside * seconds
    return free_s


def test_a_prompt_alone_takes_its_prefill_and_its_steps() -> None:
    given = prompts(0.001, count=5)
    np.testing.assert_allclose(run(given).ended_s - given.arrivals_s, given.alone_s(MACHINE), rtol=0.01)
