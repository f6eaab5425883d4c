"""The engine on an executor that has no scores to show: rows, slots and moves come out right without them.

It stands for one that chooses on its own device. A slot holds what was put there and nothing else says whose it is, so
that a wrong slot, a move that is missed or one that comes too late gives a row another's tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.triton.engine import Engine
from deploy.triton.executor import Decoding, Encoded, Step
from deploy.triton.limits import EngineSettings
from deploy.triton.protocol import FinishReason, Row, Sampling, Source, Task
from deploy.triton.slots import SIDES, Move, Side
from tests.deploy.triton.engine_traffic import Collector, submit

SLOTS = 5


class DeviceExecutor:
    """Answers a source that begins with n by n, n + 1, n + 2 …"""

    def __init__(self) -> None:
        self.slots: list[tuple[int, int] | None] = [None] * SLOTS
        """What each slot's sequence began with, and how far it is."""

    def encode(self, sources: Sequence[Source]) -> Encoded:
        positions = max(source.cost for source in sources)
        routes = np.eye(3, dtype=np.float32)[[int(source.ids[0]) % 3 for source in sources]]
        return Encoded(positions=positions, routes_B3=routes, memory=[int(source.ids[0]) for source in sources])

    def extract(self, encoded: Encoded, indices: Sequence[int], sources: Sequence[Source]) -> list[np.ndarray]:
        firsts = [encoded.memory[index] for index in indices]
        return [np.full((source.cost, 3), first) for first, source in zip(firsts, sources, strict=True)]

    def prepare(self, task: Task, encoded: Encoded, indices: Sequence[int]) -> list[int]:
        return [encoded.memory[index] for index in indices]

    def interrupt(self) -> None: ...

    def start(self, task: Task, prepared: list[int], indices: Sequence[int], rows: Sequence[Decoding]) -> None:
        for index, row in zip(indices, rows, strict=True):
            (slot,) = row.slots
            self.slots[slot] = (prepared[index], 0)

    def step(self, task: Task, rows: Sequence[Decoding], bounds: slice) -> Step:
        assert sorted(slot for row in rows for slot in row.slots) == list(range(bounds.start, bounds.stop))
        assert (bounds.start if SIDES[task] is Side.FRONT else SLOTS - bounds.stop) == 0
        reasons = []
        for row in rows:
            (slot,) = row.slots
            held = self.slots[slot]
            assert held is not None
            self.slots[slot] = (held[0], held[1] + 1)
            reasons.append(row.search.accept(sum(held)))
        return Step(finish_reasons=reasons, cached_tokens=len(rows))

    def move(self, moves: Iterable[Move]) -> None:
        for move in moves:
            self.slots[move.target], self.slots[move.source] = self.slots[move.source], None

    def trim(self) -> Iterator[None]:
        return iter(())


@pytest.fixture(scope="module")
def engine(nano_bundle: Path) -> Engine:
    engine = Engine(nano_bundle, EngineSettings(slots=SLOTS, prefill_tokens=40, threads=1, verify=False))
    engine._executor = DeviceExecutor()
    return engine


ROWS = st.tuples(st.integers(16, 99), st.integers(1, 30), st.integers(1, 6), st.booleans())
BATCHES = st.tuples(st.sampled_from(Task), st.lists(ROWS, min_size=1, max_size=6), st.integers(0, 3), st.booleans())


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(BATCHES, max_size=12))
def test_every_row_gets_its_own_tokens_whatever_comes_and_goes(engine: Engine, batches: list) -> None:
    asked: dict[int, tuple[Task, Row]] = {}
    collectors: list[Collector] = []
    cancelled: set[int] = set()
    for task, shapes, steps, cancels in batches:
        rows = [
            Row(
                row_id=len(asked) + index,
                source=Source(np.array([first] * cost)),
                sampling=Sampling(max_new_tokens=count),
                stream=stream,
            )
            for index, (first, cost, count, stream) in enumerate(shapes)
        ]
        asked.update((row.row_id, (task, row)) for row in rows)
        collectors.append(submit(engine, rows, task))
        for _ in range(steps):
            engine.step()
        if cancels:
            cancelled.add(rows[-1].row_id)
            engine.cancel([rows[-1].row_id])
    while engine.step():
        pass
    assert (engine.stats.slots_used, engine.stats.waiting_rows) == (0, 0)
    finals = {row_id: final for collector in collectors for row_id, final in collector.finals.items()}
    tokens = {row_id: found for collector in collectors for row_id, found in collector.tokens.items()}
    assert finals.keys() == asked.keys()
    for row_id, (task, row) in asked.items():
        first, final = int(row.source.ids[0]), finals[row_id]
        if final.finish_reason is FinishReason.CANCELLED:
            assert row_id in cancelled
            assert tokens[row_id] == list(range(first, first + len(tokens[row_id])))
            continue
        answered_as = Task(first % 3) if task is Task.AUTO else task
        assert final.task is answered_as
        if answered_as is Task.QA:
            assert (final.emissions == first).all()
            assert final.emissions.shape == (row.source.cost, 3)
        else:
            assert answered_as in SIDES
            assert tokens[row_id] == list(range(first, first + row.sampling.max_new_tokens))
    started = [each for collector in collectors for each in collector.prefills]
    assert sum(each.rows for each in started) >= len(asked) - len(cancelled)
