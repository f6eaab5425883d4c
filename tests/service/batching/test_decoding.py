"""What is written at a place: the time between tokens, and what one answer more costs the others."""

from __future__ import annotations

import numpy as np
import pytest

from deploy.triton.protocol import EngineStats, StepTotals, Task
from service.batching.decoding import Decoding, in_time
from service.batching.lengths import ExpectedAnswer
from service.batching.pending import Pending
from service.batching.steps import StepTime, StepTimes
from service.batching.tiers import Tier

STEPS = (4e-3, 1e-3, 1e-6)
ANSWER = ExpectedAnswer(20, 40, 80)


def answer(deadline_s: float = 60.0, *, task: Task = Task.GENERATION, tier: Tier = Tier.DEFAULT) -> Pending[None]:
    return Pending(
        payload=None,
        tokens=100,
        group=task,
        deadline_s=deadline_s,
        on_deadline=lambda: None,
        on_refused=lambda _: None,
        answer=ANSWER,
        tier=tier,
    )


def decoding(*answers: Pending[None]) -> Decoding:
    place = Decoding(StepTimes(StepTime(STEPS), StepTime(STEPS)))
    for each in answers:
        place.add(each)
        place.begin(each)
    return place


def test_both_decoders_take_turns_so_a_token_waits_for_a_step_of_each() -> None:
    two, both = decoding(answer(), answer()), decoding(answer(), answer(task=Task.SUMMARY))
    assert two.token_s() == pytest.approx(4e-3 + 2 * (1e-3 + 120e-6))
    assert both.token_s() == pytest.approx(2 * (4e-3 + 1e-3 + 120e-6))


def test_whoever_leaves_takes_its_part_of_the_steps_with_it() -> None:
    stays, leaves = answer(), answer(task=Task.SUMMARY)
    place = decoding(stays, leaves)
    place.remove(leaves)
    assert place.token_s() == decoding(stays).token_s()
    place.remove(stays)
    assert place.token_s() == 0


def test_steps_are_priced_by_the_answers_that_would_be_late() -> None:
    # 40 tokens at 5.1 ms are likely.
    near, far = decoding(answer(0.25)), decoding(answer(60.0))
    assert near.price(0.0) > 0
    assert far.price(0.0) == decoding().price(0.0) == 0
    assert decoding(answer(0.25, tier=Tier.PRIORITY)).price(0.0) == pytest.approx(8 * near.price(0.0))


def test_what_has_been_written_is_not_to_come_any_more() -> None:
    """Near its end an answer is surely in time, and only those that may follow it are counted."""
    place = decoding(answer(0.25))
    before = place.price(0.0)
    place.learn(EngineStats(slots_used=1, slots_total=4, waiting_rows=0, generation_steps=StepTotals(steps=35)))
    assert 0 < place.price(0.0) < before


def test_chances_follow_the_quantiles() -> None:
    tokens = np.array([0.0, 19.9, 20.0, 40.0, 80.0, 1e6])
    expected = np.repeat(np.array(ANSWER, float)[:, None], len(tokens), axis=1)
    np.testing.assert_allclose(in_time(tokens, expected), [0, 0, 0.1, 0.5, 1, 1])
    assert (np.diff(in_time(np.arange(100.0), np.repeat(expected[:, :1], 100, axis=1))) >= 0).all()


def test_an_answer_whose_length_is_known_is_in_time_or_not() -> None:
    np.testing.assert_allclose(in_time(np.array([29.0, 31.0]), np.full((3, 2), 30.0)), [0, 1])
