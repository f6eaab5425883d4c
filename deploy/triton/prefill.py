"""Sources are encoded on a thread beside the decode steps, one group of rows at a time.

    stepping thread   begin ─▶ step ─▶ step ─▶ … ─▶ the rows' slots are filled ─▶ step with them
                        │                                     ▲
    prefill thread      └─▶ encoder ─▶ routes ─▶ what each task's decoder reads

The thread runs graphs and nothing else: rows, slots and the pool are the stepping thread's, which gets what was
computed once it is all there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from .executor import Encoded, Executor
from .protocol import Source, Task
from .requests import LiveRow, routed


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """What the rows of one task need to go on."""

    task: Task
    indices: list[int]
    """Of the rows, in the group."""

    prepared: Any = None
    """What the executor prepared for them, in their order."""

    error: Exception | None = None
    """What went wrong in place of that."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoding:
    """A group's sources, encoded."""

    encoded: Encoded
    parts: list[Part]
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Prefill:
    """A group that is being encoded."""

    rows: Sequence[LiveRow]
    began_s: float
    encoding: Future[Encoding]

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for it."""
        return not all(row.finished for row in self.rows)


class PrefillThread:
    """Encodes groups in the order in which they are begun."""

    def __init__(self, on_end: Callable[[], None]) -> None:
        """`on_end` is called, by any thread, when a group has been encoded or has failed."""
        self._pool = ThreadPoolExecutor(1, "prefill")
        self._on_end = on_end

    def begin(self, executor: Executor, rows: Sequence[LiveRow]) -> Prefill:
        """Encode the sources of rows together, and prepare each for what its task reads."""
        began_s = time.perf_counter()
        for row in rows:
            row.admit(began_s)
        encoding = self._pool.submit(_encode, executor, [row.source for row in rows], [row.task for row in rows])
        encoding.add_done_callback(lambda _: self._on_end())
        return Prefill(rows, began_s, encoding)

    def close(self) -> None:
        """End when the group under way has."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def _encode(executor: Executor, sources: Sequence[Source], tasks: Sequence[Task]) -> Encoding:
    began_s = time.perf_counter()
    encoded = executor.encode(sources)
    tasks = [routed(task, route) for task, route in zip(tasks, encoded.routes_B3, strict=True)]
    parts = []
    for task in (Task.GENERATION, Task.SUMMARY, Task.QA):
        indices = [index for index, each in enumerate(tasks) if each is task]
        if indices:
            parts.append(_prepare(executor, task, encoded, indices, [sources[index] for index in indices]))
    return Encoding(encoded=encoded, parts=parts, seconds=time.perf_counter() - began_s)


def _prepare(executor: Executor, task: Task, encoded: Encoded, indices: list[int], sources: Sequence[Source]) -> Part:
    """One task's part; what fails here fails its rows and no others."""
    try:
        if task is Task.QA:
            prepared: Any = executor.extract(encoded, indices, sources)
        else:
            prepared = executor.prepare(task, encoded, indices)
    except Exception as error:
        return Part(task=task, indices=indices, error=error)
    return Part(task=task, indices=indices, prepared=prepared)
