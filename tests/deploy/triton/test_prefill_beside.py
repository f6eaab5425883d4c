"""Rows go on being decoded while others' sources are encoded, and whatever becomes of those."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings
from deploy.triton.pacing import EASE_S, LONGEST_GAP_S, Pace
from deploy.triton.protocol import BatchNews, FinishReason, GenerationBatch, Row, Source, Task
from tests.deploy.triton.engine_traffic import Collector, answer, broken, make_rows, submit

PATIENCE_S = 60


class HeldEncoder:
    """Encodes when the test lets it, or fails where it is interrupted."""

    def __init__(self, engine: Engine) -> None:
        self.begun, self.may_go_on = threading.Event(), threading.Event()
        self.interrupted, self.times_interrupted = False, 0
        self._encode = engine._executor.encoder.encode

    def encode(self, sources: list[Source]) -> tuple[np.ndarray, np.ndarray]:
        self.begun.set()
        assert self.may_go_on.wait(PATIENCE_S)
        if self.interrupted:
            self.interrupted, self.times_interrupted = False, self.times_interrupted + 1
            raise RuntimeError("terminated")
        return self._encode(sources)

    def interrupt(self) -> None:
        self.interrupted = True
        self.may_go_on.set()


class Stream(Collector):
    """A sink that can be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self._came = threading.Condition()

    def __call__(self, news: BatchNews) -> None:
        with self._came:
            super().__call__(news)
            self._came.notify_all()

    def wait_for_tokens(self, row_id: int, count: int) -> None:
        with self._came:
            assert self._came.wait_for(lambda: len(self.tokens.get(row_id, [])) >= count, PATIENCE_S)

    def wait_for_ends(self, *row_ids: int) -> None:
        with self._came:
            assert self._came.wait_for(lambda: self.finals.keys() >= set(row_ids), PATIENCE_S)


@pytest.fixture
def streaming(running_engine: Engine) -> Stream:
    """The stream of row 100, which goes on for long."""
    stream = Stream()
    rows = make_rows(1, first=100, stream=True, max_new_tokens=500, min_new_tokens=500, temperature=1.0)
    running_engine.submit(batch_of(rows), stream)
    stream.wait_for_tokens(100, 2)
    return stream


@pytest.fixture
def held(running_engine: Engine, streaming: Stream, monkeypatch: pytest.MonkeyPatch) -> HeldEncoder:
    """Everything that comes after the stream is held in the encoder."""
    held = HeldEncoder(running_engine)
    monkeypatch.setattr(running_engine._executor.encoder, "encode", held.encode)
    monkeypatch.setattr(running_engine._executor.encoder, "interrupt", held.interrupt)
    return held


def batch_of(rows: Sequence[Row]) -> GenerationBatch:
    return GenerationBatch(task=Task.GENERATION, rows=tuple(rows))


def test_a_stream_goes_on_while_another_source_is_encoded(
    running_engine: Engine, streaming: Stream, held: HeldEncoder, module_engine: Engine
) -> None:
    rows = make_rows(3, max_new_tokens=30, min_new_tokens=30, temperature=1.0)
    late = submit(running_engine, rows)
    assert held.begun.wait(PATIENCE_S)
    streaming.wait_for_tokens(100, len(streaming.tokens[100]) + 20)
    assert not late.calls, "it cannot have been encoded"
    held.may_go_on.set()
    assert late.done.wait(PATIENCE_S)
    running_engine.cancel([100])
    streaming.wait_for_ends(100)
    assert late.tokens == answer(module_engine, rows).tokens, "equal seeds, and other tokens"
    alone = answer(module_engine, make_rows(1, first=100, max_new_tokens=500, min_new_tokens=500, temperature=1.0))
    assert streaming.tokens[100] == alone.tokens[100][: len(streaming.tokens[100])]


def test_a_row_that_is_cancelled_while_it_is_encoded_ends_at_once_and_its_mates_go_on(
    running_engine: Engine, streaming: Stream, held: HeldEncoder, module_engine: Engine
) -> None:
    late, rows = Stream(), make_rows(3, max_new_tokens=5)
    running_engine.submit(batch_of(rows), late)
    assert held.begun.wait(PATIENCE_S)
    running_engine.cancel([1])
    late.wait_for_ends(1)
    assert late.reasons == {1: FinishReason.CANCELLED}
    assert late.finals[1].timings is not None
    assert late.finals[1].timings.prefill_s == 0.0, "whoever counts what was begun would count it twice"
    held.may_go_on.set()
    late.wait_for_ends(0, 2)
    alone = answer(module_engine, rows).tokens
    assert {row_id: late.tokens[row_id] for row_id in (0, 2)} == {row_id: alone[row_id] for row_id in (0, 2)}
    assert running_engine.stats.slots_used == 1
    running_engine.cancel([100])


def test_what_nobody_waits_for_any_more_is_not_encoded_to_its_end(
    running_engine: Engine, streaming: Stream, held: HeldEncoder
) -> None:
    given_up = Stream()
    running_engine.submit(batch_of(make_rows(2)), given_up)
    assert held.begun.wait(PATIENCE_S)
    running_engine.cancel([0, 1])
    given_up.wait_for_ends(0, 1)
    next_ones = submit(running_engine, make_rows(2, first=10, max_new_tokens=3))
    assert next_ones.done.wait(PATIENCE_S)
    assert (held.times_interrupted, given_up.prefills) == (1, [])
    assert set(next_ones.reasons.values()) <= {FinishReason.LENGTH, FinishReason.STOP}
    running_engine.cancel([100])


def test_a_source_that_cannot_be_encoded_ends_its_rows_and_no_others(
    running_engine: Engine, streaming: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(running_engine._executor.encoder, "encode", broken)
        failing = submit(running_engine, make_rows(2))
        assert failing.done.wait(PATIENCE_S)
    assert failing.reasons == dict.fromkeys((0, 1), FinishReason.ERROR)
    streaming.wait_for_tokens(100, len(streaming.tokens[100]) + 5)
    running_engine.cancel([100])


def test_closing_ends_what_is_being_encoded(running_engine: Engine, streaming: Stream, held: HeldEncoder) -> None:
    late = submit(running_engine, make_rows(2))
    assert held.begun.wait(PATIENCE_S)
    running_engine.close()
    assert late.done.wait(PATIENCE_S)
    assert late.reasons == dict.fromkeys((0, 1), FinishReason.CANCELLED)
    assert held.may_go_on.is_set(), "it was not interrupted"


def test_the_encoder_stops_in_the_midst_of_a_run(module_engine: Engine) -> None:
    encoder, outcome = module_engine._executor.encoder, []

    def encode() -> None:
        try:
            outcome.append(encoder.encode([Source(np.full(2048, 50)) for _ in range(16)]))
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=encode)
    thread.start()
    while thread.is_alive():
        encoder.interrupt()
        thread.join(0.001)
    assert "terminate" in str(outcome[0]).lower()
    encoder.encode([Source(np.array([5, 50]))])


def test_without_streams_a_step_waits_for_its_rows(nano_bundle: Path) -> None:
    engine = Engine(nano_bundle, EngineSettings(slots=4, prefill_tokens=100, threads=1, verify=False))
    first, second = submit(engine, make_rows(1)), submit(engine, make_rows(1, first=5))
    assert engine.stats.waiting_rows == 2
    engine.step()
    assert (len(first.prefills), len(second.prefills), engine.stats.waiting_rows) == (1, 1, 0)


def paced(gap_steps: float = 3.0) -> Pace:
    """One row's steps take 10 ms alone, and the last one ended at 100 s."""
    pace = Pace(gap_steps)
    pace.step(1, 99.99, 100.0, beside_prefill=False)
    return pace


def test_tokens_come_so_many_steps_apart_beside_a_prefill() -> None:
    pace = paced(3.0)
    assert pace.due_s(100.0, 100.0) == pytest.approx(100.02), "the step itself takes the rest of three times 10 ms"
    pace.step(1, 100.02, 100.035, beside_prefill=True)
    assert pace.due_s(100.035, 100.0) == pytest.approx(100.05), "slower beside the prefill: due earlier"


def test_a_long_prefill_gets_more_of_the_machine_and_no_gap_grows_past_its_bound() -> None:
    pace = paced(3.0)
    assert pace.due_s(100.0, 100.0 - 2 * EASE_S) == pytest.approx(100.0 + 6 * 0.01 - 0.01)
    assert pace.due_s(100.0, 100.0 - 90 * EASE_S) == pytest.approx(100.0 + LONGEST_GAP_S - 0.01)


def test_steps_of_more_rows_have_a_pace_of_their_own() -> None:
    pace = paced(2.0)
    pace.step(20, 100.0, 100.1, beside_prefill=True)
    assert pace.due_s(100.1, 100.1) == pytest.approx(100.1 + LONGEST_GAP_S - 0.1), "not known yet: as they are now"
    pace.step(20, 101.0, 101.02, beside_prefill=False)
    assert pace.due_s(101.02, 101.02) == pytest.approx(101.02 + 0.04 - 0.02)


@pytest.mark.parametrize("gap_steps", ["0.5", "nan", "-1", "three"])
def test_a_pace_that_cannot_be_kept_is_refused(gap_steps: str) -> None:
    with pytest.raises(ValueError, match="gap_steps"):
        EngineSettings.from_parameters({"gap_steps": gap_steps})


def test_the_pace_is_a_parameter() -> None:
    assert EngineSettings.from_parameters({"gap_steps": "2.5", "slots": "4"}) == EngineSettings(gap_steps=2.5, slots=4)
