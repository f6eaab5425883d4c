"""The engine under traffic: waiting, cancelling, failing, many threads, and nothing left behind."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings
from deploy.triton.protocol import BatchNews, FinishReason, GenerationBatch, Source, Task
from tests.deploy.triton.engine_traffic import Collector, answer, broken, finish, make_rows, submit


@pytest.fixture
def small_engine(nano_bundle: Path) -> Engine:
    """An engine with four slots."""
    return Engine(nano_bundle, EngineSettings(slots=4, threads=1, verify=False))


def test_a_cancelled_row_frees_its_slot_within_one_step(engine: Engine) -> None:
    rows = make_rows(5, max_new_tokens=30, stream=True)
    alone = answer(engine, rows).tokens
    collector = submit(engine, rows)
    for _ in range(3):
        engine.step()
    assert engine.stats.slots_used == 5
    engine.cancel([0, 3])
    engine.step()
    assert engine.stats.slots_used == 3
    assert {row_id: collector.reasons.get(row_id) for row_id in (0, 3)} == dict.fromkeys((0, 3), FinishReason.CANCELLED)
    finish(engine)
    assert collector.tokens[0] == alone[0][:3]
    assert all(collector.tokens[row_id] == alone[row_id] for row_id in (1, 2, 4))


def test_cancelling_reaches_waiting_rows_and_ignores_unknown_ones(small_engine: Engine) -> None:
    collector = submit(small_engine, make_rows(10))
    engine = small_engine
    engine.step()
    assert engine.stats.waiting_rows == 6
    engine.cancel([7, 8, 12345])
    engine.step()
    assert engine.stats.waiting_rows == 4
    finish(engine)
    cancelled = {row_id for row_id, reason in collector.reasons.items() if reason is FinishReason.CANCELLED}
    assert cancelled == {7, 8}
    assert len(collector.finals) == 10


def test_a_row_cancelled_before_it_was_routed_says_so(engine: Engine) -> None:
    collector = submit(engine, make_rows(1), Task.AUTO)
    engine.cancel([0])
    engine.step()
    assert collector.finals[0].task is Task.AUTO
    assert collector.finals[0].timings.prefill_s == 0


def test_cancelled_beams_give_back_all_their_slots(engine: Engine) -> None:
    submit(engine, make_rows(3, num_beams=4, max_new_tokens=30, min_new_tokens=20), Task.SUMMARY)
    engine.step()
    assert engine.stats.slots_used == 12
    engine.cancel([1])
    engine.step()
    assert engine.stats.slots_used == 8
    finish(engine)


def test_waiting_rows_get_in_as_slots_become_free(small_engine: Engine, engine: Engine) -> None:
    rows = make_rows(20, temperature=1.0)
    expected = answer(engine, rows).tokens
    collector = submit(small_engine, rows)
    waiting = []
    while small_engine.step():
        stats = small_engine.stats
        assert stats.slots_used <= stats.slots_total == 4
        waiting.append(stats.waiting_rows)
    assert waiting[0] == 16
    assert waiting == sorted(waiting, reverse=True)
    assert collector.tokens == expected


def test_a_beam_search_waits_for_its_slots_and_is_not_overtaken(small_engine: Engine) -> None:
    engine = small_engine
    first = submit(engine, make_rows(2, max_new_tokens=6, min_new_tokens=6))
    engine.step()
    beams = submit(engine, make_rows(1, first=10, num_beams=4, max_new_tokens=6, min_new_tokens=6), Task.SUMMARY)
    late = submit(engine, make_rows(2, first=20))
    while not beams.finals:
        assert not late.calls
        engine.step()
    assert first.finals
    finish(engine)
    assert len(late.finals) == 2


def test_long_prefills_are_spread_over_steps(nano_bundle: Path) -> None:
    engine = Engine(nano_bundle, EngineSettings(threads=1, prefill_tokens=100, verify=False))
    rows = [replace(row, source=Source(np.full(40, 50 + row.row_id))) for row in make_rows(6)]
    collector = submit(engine, rows)
    engine.step()
    assert (engine.stats.slots_used, engine.stats.waiting_rows) == (2, 4)
    finish(engine)
    assert len(collector.finals) == 6


def test_a_failing_step_ends_its_rows_and_no_others(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows, others = make_rows(3), make_rows(3, first=10)
    expected = answer(engine, rows).tokens
    good, bad = submit(engine, rows), submit(engine, others, Task.SUMMARY)
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(engine._executor.decoders[Task.SUMMARY], "step", broken)
        engine.step()
    assert set(bad.reasons.values()) == {FinishReason.ERROR}
    assert "a step for SUMMARY failed; 3 rows end with an error" in caplog.text
    assert "the operator broke" in caplog.text
    finish(engine)
    assert good.tokens == expected
    assert set(answer(engine, others, Task.SUMMARY).reasons.values()) == {FinishReason.LENGTH}


@pytest.mark.parametrize(("part", "name"), [("encoder", "encode"), ("pool", "write_source")])
def test_a_failing_prefill_ends_its_rows_and_the_engine_lives_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, part: str, name: str
) -> None:
    live = submit(engine, make_rows(2))
    engine.step()
    with monkeypatch.context() as patch:
        patch.setattr(getattr(engine._executor, part), name, broken)
        bad = submit(engine, make_rows(3, first=10), Task.AUTO)
        engine.step()
    failed = {row_id for row_id, reason in bad.reasons.items() if reason is FinishReason.ERROR}
    assert failed == {row_id for row_id in (10, 11, 12) if bad.finals[row_id].task is not Task.QA}
    assert engine.stats.slots_used == 2
    finish(engine)
    assert set(live.reasons.values()) == {FinishReason.LENGTH}


def test_a_row_without_finite_scores_ends_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = make_rows(3)
    expected = answer(engine, rows).tokens
    collector = submit(engine, rows)
    decoder = engine._executor.decoders[Task.GENERATION]
    step = decoder.step

    def spoiled(bounds: slice) -> np.ndarray:
        scores = step(bounds)
        scores[1] = np.nan
        return scores

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "step", spoiled)
        engine.step()
    finish(engine)
    reasons = list(collector.reasons.values())
    assert sorted(reasons) == [FinishReason.LENGTH, FinishReason.LENGTH, FinishReason.ERROR]
    for row_id, reason in collector.reasons.items():
        assert reason is FinishReason.ERROR or collector.tokens[row_id] == expected[row_id]


def test_a_sink_that_fails_ends_its_own_batch(engine: Engine) -> None:
    calls = []

    def failing(news: BatchNews) -> None:
        calls.append(news)
        raise ConnectionError("the client has gone")

    engine.submit(GenerationBatch(task=Task.GENERATION, rows=tuple(make_rows(2, stream=True))), failing)
    other = submit(engine, make_rows(2, first=10))
    engine.step()
    assert engine.stats.slots_used == 4
    engine.step()
    assert engine.stats.slots_used == 2
    assert len(calls) == 2
    finish(engine)
    assert set(other.reasons.values()) == {FinishReason.LENGTH}


def test_two_hundred_mixed_rows_leave_nothing_behind(small_engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    engine, random = small_engine, np.random.default_rng(0)
    collectors: list[Collector] = []
    cancelled: set[int] = set()
    submitted = 0
    with caplog.at_level(logging.ERROR):
        while submitted < 200 or engine.step():
            if submitted < 200:
                rows = make_rows(
                    int(random.integers(1, 6)),
                    first=submitted,
                    stream=bool(random.integers(2)),
                    max_new_tokens=int(random.integers(1, 15)),
                    temperature=float(random.choice([0.0, 1.0])),
                    top_p=float(random.choice([0.8, 1.0])),
                    num_beams=int(random.choice([1, 1, 1, 3])),
                )
                collectors.append(submit(engine, rows, Task(random.integers(4))))
                submitted += len(rows)
                victims = [row.row_id for row in rows if random.random() < 1 / 3]
                cancelled.update(victims)
                engine.step()
                engine.cancel(victims)
    finals = {row_id: update for collector in collectors for row_id, update in collector.finals.items()}
    assert len(finals) == submitted
    assert engine.stats.slots_used == engine.stats.waiting_rows == 0
    ended = {row_id for row_id, update in finals.items() if update.finish_reason is FinishReason.CANCELLED}
    assert ended
    assert ended <= cancelled
    assert not caplog.records


def test_threads_submit_and_cancel_while_it_runs(running_engine: Engine) -> None:
    engine = running_engine
    collectors: dict[int, Collector] = {}

    def client(number: int) -> None:
        for round_ in range(5):
            first = 1000 * number + 10 * round_
            rows = make_rows(4, first=first, max_new_tokens=8, min_new_tokens=8, stream=number % 2 == 0)
            collectors[first] = submit(engine, rows, Task.SUMMARY if number % 2 else Task.GENERATION)
            engine.cancel([first + 1])

    clients = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    for first, collector in collectors.items():
        assert collector.done.wait(timeout=60)
        assert collector.reasons.pop(first) is FinishReason.LENGTH
        assert collector.reasons[first + 1] in (FinishReason.CANCELLED, FinishReason.LENGTH)
        assert all(len(collector.tokens[first + offset]) == 8 for offset in (0, 2, 3))
    assert len(collectors) == 30


def test_an_idle_engine_wakes_up(running_engine: Engine) -> None:
    for start in range(3):
        collector = submit(running_engine, make_rows(2, first=start * 10))
        assert collector.done.wait(timeout=60)


def test_closing_cancels_what_is_in_flight(nano_bundle: Path) -> None:
    engine = Engine(nano_bundle, EngineSettings(slots=2, threads=1, verify=False))
    collector = submit(engine, make_rows(5, max_new_tokens=400, min_new_tokens=400))
    engine.step()
    engine.close()
    engine.run()
    assert list(collector.reasons.values()) == [FinishReason.CANCELLED] * 5
    assert engine.stats.slots_used == engine.stats.waiting_rows == 0
    with pytest.raises(RuntimeError, match="the engine is closed"):
        submit(engine, make_rows(1))
