"""What the engine says it ran: the groups in which it encoded rows, and what its steps added up to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings
from deploy.triton.protocol import FinishReason, Row, Sampling, Source, StepTotals, Task
from tests.deploy.triton.engine_traffic import Collector, answer, broken, finish, submit


def sized_rows(*sizes: int, first: int = 0, max_new_tokens: int = 4, **sampling) -> list[Row]:
    """Rows whose sources have so many tokens, and whose answers all have the same length."""
    return [
        Row(
            row_id=first + index,
            source=Source(np.full(size, 50 + index)),
            sampling=Sampling(
                max_new_tokens=max_new_tokens, min_new_tokens=max_new_tokens, temperature=0.0, **sampling
            ),
        )
        for index, size in enumerate(sizes)
    ]


def groups(collector: Collector) -> list[tuple[int, int]]:
    """Rows and padded positions of a batch's prefills."""
    return [(each.rows, each.tokens) for each in collector.prefills]


@pytest.fixture
def small_engine(nano_bundle: Path) -> Engine:
    """An engine with four slots, which encodes 100 tokens between two steps."""
    return Engine(nano_bundle, EngineSettings(slots=4, prefill_tokens=100, threads=1, verify=False))


@pytest.mark.parametrize("task", Task)
def test_a_batch_is_encoded_as_it_was_sent(engine: Engine, task: Task) -> None:
    collector = answer(engine, sized_rows(3, 60, 17, 1, 40), task)
    assert groups(collector) == [(5, 60)]
    assert all(0 < each.seconds < 60 for each in collector.prefills)


def test_batches_are_never_encoded_together(engine: Engine) -> None:
    first, second = submit(engine, sized_rows(20, 10)), submit(engine, sized_rows(20, 9, 8, first=10))
    engine.step()
    assert groups(first) == [(2, 20)]
    assert groups(second) == [(3, 20)]
    finish(engine)


def test_a_batch_hears_of_its_prefill_in_the_same_step_though_no_row_streams(engine: Engine) -> None:
    collector = submit(engine, sized_rows(5, 6))
    engine.step()
    assert (collector.calls, groups(collector)) == ([[]], [(2, 6)])
    finish(engine)
    assert [len(call) for call in collector.calls] == [0, 2]


def test_a_batch_past_the_tokens_of_a_step_starts_in_parts_its_first_rows_first(small_engine: Engine) -> None:
    collector = submit(small_engine, sized_rows(30, 50, 40, 10))
    small_engine.step()
    assert groups(collector) == [(2, 50)]
    finish(small_engine)
    assert groups(collector) == [(2, 50), (2, 40)]


def test_a_batch_past_the_free_slots_starts_in_parts(small_engine: Engine) -> None:
    collector = answer(small_engine, sized_rows(9, 8, 7, 6, 5, 4))
    assert groups(collector) == [(4, 9), (2, 5)]


def test_a_row_with_more_tokens_than_a_step_goes_alone(small_engine: Engine) -> None:
    collector = answer(small_engine, sized_rows(150, 20, 20))
    assert groups(collector) == [(1, 150), (2, 20)]


def test_a_batch_that_fits_the_next_step_is_not_cut_to_fill_this_one(small_engine: Engine) -> None:
    first, second = submit(small_engine, sized_rows(60)), submit(small_engine, sized_rows(30, 30, first=10))
    third = submit(small_engine, sized_rows(5, first=20))
    small_engine.step()
    assert (groups(first), groups(second), groups(third)) == ([(1, 60)], [], []), "nothing overtakes"
    small_engine.step()
    assert (groups(second), groups(third)) == ([(2, 30)], [(1, 5)])
    finish(small_engine)


def test_a_prefill_that_fails_is_no_observation(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine._executor.encoder, "encode", broken)
    collector = answer(engine, sized_rows(5))
    assert collector.reasons == {0: FinishReason.ERROR}
    assert not collector.prefills


def test_totals_add_up_what_the_steps_decoded(engine: Engine) -> None:
    before = engine.stats
    answer(engine, sized_rows(10, 20, max_new_tokens=3))
    between = engine.stats
    answer(engine, sized_rows(30, max_new_tokens=2, num_beams=3), Task.SUMMARY)
    after = engine.stats
    generation, summary = (
        between.generation_steps - before.generation_steps,
        after.summary_steps - between.summary_steps,
    )
    # Two rows of 10 and 20 tokens, each step with one more token of the answer; then three beams of one row.
    assert (generation.steps, generation.rows, generation.cached_tokens) == (3, 6, 3 * 30 + 2 * (0 + 1 + 2))
    assert (summary.steps, summary.rows, summary.cached_tokens) == (2, 6, 2 * 90 + 3 * (0 + 1))
    assert generation.seconds > 0 < summary.seconds
    assert between.summary_steps == before.summary_steps
    assert after.generation_steps == between.generation_steps


def test_the_difference_of_two_totals_is_what_ran_between_them() -> None:
    early = StepTotals(steps=1, rows=2, cached_tokens=30, seconds=0.5)
    late = StepTotals(steps=4, rows=9, cached_tokens=100, seconds=0.75)
    assert late - early == StepTotals(steps=3, rows=7, cached_tokens=70, seconds=0.25)
