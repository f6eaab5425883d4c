"""The loop that steps the engine: whatever ends it, and whatever comes while it rests, nobody is left waiting."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings
from deploy.triton.protocol import BatchNews, FinishReason, GenerationBatch, Task
from tests.deploy.triton.engine_traffic import Collector, broken, make_rows, submit


@pytest.fixture
def small_engine(nano_bundle: Path) -> Engine:
    """An engine with four slots."""
    return Engine(nano_bundle, EngineSettings(slots=4, threads=1, verify=False))


def wait_for(thread: threading.Thread) -> None:
    thread.join(timeout=60)
    assert not thread.is_alive()


def test_whatever_ends_the_decode_loop_tells_every_row_and_refuses_later_ones(small_engine: Engine) -> None:
    def after_step() -> None:
        raise ConnectionError("the stub has gone")

    collectors = [
        submit(small_engine, make_rows(6, first=0, max_new_tokens=100, min_new_tokens=100)),
        submit(small_engine, make_rows(2, first=10, stream=True), Task.SUMMARY),
    ]
    small_engine.run(after_step)
    assert [list(each.reasons.values()) for each in collectors] == [[FinishReason.ERROR] * 6, [FinishReason.ERROR] * 2]
    assert small_engine.stats.slots_used == small_engine.stats.waiting_rows == 0
    with pytest.raises(RuntimeError, match=r"the decode loop has ended \(ConnectionError\('the stub has gone'\)\)"):
        submit(small_engine, make_rows(1))


@pytest.mark.parametrize("part", ["step", "take_cancelled", "next_groups", "finish"])
def test_a_scheduler_that_fails_leaves_no_row_untold(
    small_engine: Engine, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    collector = submit(small_engine, make_rows(6, max_new_tokens=3))
    small_engine.step()
    monkeypatch.setattr(small_engine if part == "step" else small_engine._scheduler, part, broken)
    small_engine.run()
    assert collector.reasons.keys() == set(range(6))
    assert "the operator broke" in (small_engine.failure or "")


def test_a_pool_that_cannot_move_ends_the_loop_and_tells_all(
    small_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*make_rows(1, max_new_tokens=2), *make_rows(3, first=1, max_new_tokens=50, min_new_tokens=50)]
    collector = submit(small_engine, rows)
    monkeypatch.setattr(small_engine._executor.pool, "move", broken)
    thread = threading.Thread(target=small_engine.run)
    thread.start()
    assert collector.done.wait(timeout=60)
    small_engine.close()
    wait_for(thread)
    assert collector.reasons == {0: FinishReason.LENGTH, **dict.fromkeys((1, 2, 3), FinishReason.ERROR)}


def test_a_sink_that_ends_its_thread_leaves_no_other_row_untold(small_engine: Engine) -> None:
    def ending(news: BatchNews) -> None:
        raise SystemExit(1)

    small_engine.submit(GenerationBatch(task=Task.GENERATION, rows=tuple(make_rows(1, first=50))), ending)
    collector = submit(small_engine, make_rows(2))
    with pytest.raises(SystemExit):
        small_engine.run()
    assert collector.reasons == {0: FinishReason.ERROR, 1: FinishReason.ERROR}
    assert "SystemExit" in (small_engine.failure or "")


def test_rows_that_come_between_a_step_and_the_end_are_told(
    small_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submit, then close, after the last step and before the loop looks whether it is to end."""
    engine, collectors = small_engine, []

    def raced() -> Iterator[None]:
        collectors.append(submit(engine, make_rows(3)))
        engine.close()
        yield

    monkeypatch.setattr(engine._executor, "trim", raced)
    submit(engine, make_rows(1, first=10, max_new_tokens=1))
    engine.run()
    (collector,) = collectors
    assert collector.reasons == dict.fromkeys(range(3), FinishReason.CANCELLED)


def test_nobody_waits_while_memory_is_given_back(nano_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(nano_bundle, EngineSettings(slots=4, threads=1, verify=False, warm_positions=1))
    asked = threading.Event()
    discarded: list[int] = []
    collectors: list[Collector] = []

    def ask() -> None:
        assert engine.stats.slots_used == 0
        engine.cancel([12345])
        collectors.append(submit(engine, make_rows(1, first=100)))
        asked.set()

    for pages in engine._executor.pool._pages.values():

        def discard(slot: int, first: int, discard=pages.discard) -> None:
            discard(slot, first)
            discarded.append(slot)
            if not asked.is_set():
                threading.Thread(target=ask).start()
                assert asked.wait(timeout=60), "the engine's lock is held while memory is given back"

        monkeypatch.setattr(pages, "discard", discard)
    thread = threading.Thread(target=engine.run)
    thread.start()
    first = submit(engine, make_rows(4, longest=100, max_new_tokens=4))
    assert first.done.wait(timeout=60)
    assert asked.wait(timeout=60)
    assert collectors[0].done.wait(timeout=60)
    engine.close()
    wait_for(thread)
    assert set(first.reasons.values()) | set(collectors[0].reasons.values()) <= {FinishReason.LENGTH, FinishReason.STOP}
    assert not np.any(engine._executor.pool._deepest > 1), "what was left is given back later"
