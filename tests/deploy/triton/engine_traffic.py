"""Rows to ask an engine for, and a sink that remembers what it was told."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np

from deploy.triton.engine import Engine
from deploy.triton.protocol import (
    BatchNews,
    FinishReason,
    GenerationBatch,
    PrefillTime,
    Row,
    RowUpdate,
    Sampling,
    Source,
    Task,
)


@dataclass
class Collector:
    """A sink."""

    calls: list[list[RowUpdate]] = field(default_factory=list)
    prefills: list[PrefillTime] = field(default_factory=list)
    wanted: int = 0
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, news: BatchNews) -> None:
        self.calls.append(news.updates)
        self.prefills.extend(news.prefills)
        if self.wanted and len(self.finals) == self.wanted:
            self.done.set()

    @property
    def updates(self) -> list[RowUpdate]:
        return [update for call in self.calls for update in call]

    @property
    def finals(self) -> dict[int, RowUpdate]:
        """Each row's last update."""
        finals = [each for each in self.updates if each.finish_reason is not FinishReason.RUNNING]
        assert len({each.row_id for each in finals}) == len(finals), "a row has finished twice"
        return {each.row_id: each for each in finals}

    @property
    def reasons(self) -> dict[int, FinishReason]:
        return {row_id: each.finish_reason for row_id, each in self.finals.items()}

    @property
    def tokens(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        for update in self.updates:
            found.setdefault(update.row_id, []).extend(update.tokens.tolist())
        return found


def make_rows(count: int, *, first: int = 0, longest: int = 60, stream: bool = False, **sampling) -> list[Row]:
    """Rows whose sources depend on their ids alone."""
    fields = {"max_new_tokens": 12, "temperature": 0.0, **sampling}
    rows = []
    for row_id in range(first, first + count):
        random = np.random.default_rng(row_id)
        source = random.integers(16, 32_000, random.integers(1, longest))
        rows.append(
            Row(
                row_id=row_id,
                source=Source(np.concatenate([[5], source])),
                sampling=Sampling(**{"seed": row_id, **fields}),
                stream=stream,
            )
        )
    return rows


def submit(engine: Engine, rows: Sequence[Row], task: Task = Task.GENERATION) -> Collector:
    collector = Collector(wanted=len(rows))
    engine.submit(GenerationBatch(task=task, rows=tuple(rows)), collector)
    return collector


def finish(engine: Engine) -> None:
    while engine.step():
        pass


def answer(engine: Engine, rows: Sequence[Row], task: Task = Task.GENERATION) -> Collector:
    """Submit rows and step until they are done."""
    collector = submit(engine, rows, task)
    finish(engine)
    return collector


def broken(*_: object) -> NoReturn:
    """Stands in for a part that fails."""
    raise RuntimeError("the operator broke")
