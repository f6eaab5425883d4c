"""The continuous-batching engine: rows enter and leave between two steps of one decode loop.

    submit ─▶ scheduler: waiting ─▶ a batch's group ─▶ executor: encoder ─┬─▶ generative prefill ─▶ front of the pool ─┐
                         (in order)                                       ├─▶ pointer prefill ────▶ back of the pool ──┤
                                                                          └─▶ extractive: done at once                 │
    sinks ◀── news ◀── rows ◀───────────────────── a token a step each, chosen by the executor ◀───────────────────────┘

Any thread may submit and cancel; one thread steps. Batches of any age decode together, and a row's tokens do not
depend on what else is decoded. The scheduler decides who runs, an executor runs it, and this module tells the sinks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .cpu_executor import CpuExecutor
from .executor import Encoded, Executor
from .limits import EngineSettings, RowLimits, check_batch
from .manifest import load_manifest
from .protocol import EngineStats, FinishReason, GenerationBatch, PrefillTime, Sink, StepTotals, Task
from .requests import LiveBatch, LiveRow
from .rules import TokenRules
from .scheduler import Scheduler
from .slots import SIDES

log = logging.getLogger(__name__)

GRAPHS = ("encoder", "extractive", "generative_prefill", "generative_step", "pointer_prefill", "pointer_step")
"""What the engine reads of a bundle."""


class Engine:
    """Answers batches of rows with the graphs of one bundle."""

    def __init__(self, bundle: Path, settings: EngineSettings | None = None) -> None:
        """Load the graphs and allocate the cache. Raises BundleError where the bundle is damaged or incomplete."""
        self.settings = settings = settings or EngineSettings()
        manifest = load_manifest(bundle, verify=settings.verify, graphs=GRAPHS)
        self.limits = RowLimits.of(manifest, settings)
        """What rows must keep: the stricter of the bundle's limits and the settings'."""

        self.failure: str | None = None
        """Why the decode loop has ended by itself; None while it has not."""

        self._rules = TokenRules.of(list(manifest.special_tokens.values()), int(manifest.config["eos_token_id"]))
        self._executor: Executor = CpuExecutor(bundle, manifest, settings, self.limits, self._rules)
        self._scheduler: Scheduler[LiveRow] = Scheduler(slots=settings.slots, prefill_tokens=settings.prefill_tokens)
        self._lock = threading.Condition()
        """Held for moments, to look at the scheduler or to change it; never while anything is computed or told."""

        self._closed = False
        self._reporting: dict[LiveBatch, None] = {}
        self._totals = dict.fromkeys(SIDES, StepTotals())

    @property
    def stats(self) -> EngineStats:
        """Occupancy at this moment, and what has been decoded so far."""
        with self._lock:
            return EngineStats(
                slots_used=self._scheduler.slots_used,
                slots_total=self.settings.slots,
                waiting_rows=self._scheduler.waiting,
                generation_steps=self._totals[Task.GENERATION],
                summary_steps=self._totals[Task.SUMMARY],
            )

    def submit(self, batch: GenerationBatch, sink: Sink) -> None:
        """Queue a batch.

        Args:
            batch: the rows.
            sink: called by the stepping thread, at most once a step, with news of the batch, until every row has had
                an update whose finish_reason is not RUNNING. The step that encodes rows tells how long that took,
                also where none of them streams. If it raises, the batch's rows are cancelled.

        Raises:
            ValueError: a row that the engine cannot serve; none is queued.
            RuntimeError: the engine is closed, or its decode loop has failed.
        """
        check_batch(batch, self.limits)
        live = LiveBatch(sink, tuple(row.row_id for row in batch.rows))
        rows = [LiveRow.start(row, batch.task, live, self._rules) for row in batch.rows]
        with self._lock:
            if self.failure is not None:
                raise RuntimeError(self.failure)
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._scheduler.add(rows)
            self._lock.notify()

    def cancel(self, row_ids: Iterable[int]) -> None:
        """End rows before the next step; ids that are not in flight are ignored."""
        with self._lock:
            self._scheduler.cancel(row_ids)
            self._lock.notify()

    def close(self) -> None:
        """Take no more rows and cancel those in flight; `run` returns after it has told their sinks."""
        with self._lock:
            self._closed = True
            self._scheduler.cancel_all()
            self._lock.notify()

    def run(self, after_step: Callable[[], None] | None = None) -> None:
        """Step until `close`, asleep while there is nothing to do. `after_step` is called between steps.

        Whatever else ends it, that included, ends every row with an error and is then told to whoever submits.
        """
        try:
            while self._wait_for_rows():
                self.step()
                if after_step is not None:
                    after_step()
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise

    def step(self) -> bool:
        """One iteration; False where no row was in flight."""
        with self._lock:
            if not self._scheduler.in_flight:
                return False
            cancelled = self._scheduler.take_cancelled()
        if cancelled:
            self._finish(cancelled, FinishReason.CANCELLED)
        with self._lock:
            groups = self._scheduler.next_groups()
        for group in groups:
            self._prefill(group)
        for task in SIDES:
            self._decode(task)
        self._tell_sinks()
        return True

    def _prefill(self, rows: Sequence[LiveRow]) -> None:
        """Encode the sources of one batch's rows together, then hand each to what its task reads."""
        began_s = time.perf_counter()
        for row in rows:
            row.admit(began_s)
        with self._isolated(rows, "the encoder"):
            encoded = self._executor.encode([row.source for row in rows])
            for row, route in zip(rows, encoded.routes_B3, strict=True):
                row.send_to(route)
            for task in (Task.GENERATION, Task.SUMMARY, Task.QA):
                indices = [index for index, row in enumerate(rows) if row.task is task]
                if indices:
                    self._start(task, encoded, indices, [rows[index] for index in indices])
            seconds = time.perf_counter() - began_s
            rows[0].batch.prefills.append(PrefillTime(rows=len(rows), tokens=encoded.positions, seconds=seconds))
            self._reporting[rows[0].batch] = None

    def _start(self, task: Task, encoded: Encoded, indices: Sequence[int], rows: Sequence[LiveRow]) -> None:
        """Read the answers off the encoder, or fill slots of the task's decoder."""
        with self._isolated(rows, f"prefill for {task.name}"):
            if task is Task.QA:
                found = self._executor.extract(encoded, indices, [row.source for row in rows])
                for row, emissions in zip(rows, found, strict=True):
                    self._finish([row], FinishReason.STOP, emissions)
                return
            with self._lock:
                for row in rows:
                    self._scheduler.assign(row, SIDES[task])
            self._executor.start(task, encoded, indices, rows)
            for row in rows:
                row.start_decoding()

    def _decode(self, task: Task) -> None:
        """One token for every row of a decoder."""
        rows, bounds = self._scheduler.decoding(SIDES[task])
        if not rows:
            return
        with self._isolated(rows, f"a step for {task.name}"):
            began_s = time.perf_counter()
            step = self._executor.step(task, rows, bounds)
            self._totals[task] += StepTotals(
                steps=1,
                rows=bounds.stop - bounds.start,
                cached_tokens=step.cached_tokens,
                seconds=time.perf_counter() - began_s,
            )
            ended: dict[FinishReason, list[LiveRow]] = {}
            for row, reason in zip(rows, step.finish_reasons, strict=True):
                if reason is not FinishReason.RUNNING:
                    ended.setdefault(reason, []).append(row)
                elif row.report():
                    self._reporting[row.batch] = None
            for row in ended.get(FinishReason.ERROR, []):
                log.error("row %d: no token has a finite score", row.row_id)
            for reason, finished in ended.items():
                self._finish(finished, reason)

    @contextmanager
    def _isolated(self, rows: Iterable[LiveRow], doing: str) -> Iterator[None]:
        """Whatever goes wrong ends these rows and no others."""
        try:
            yield
        except Exception:
            ended = [row for row in rows if not row.finished]
            log.exception("%s failed; %d rows end with an error", doing, len(ended))
            self._finish(ended, FinishReason.ERROR)

    def _finish(self, rows: Sequence[LiveRow], reason: FinishReason, emissions: np.ndarray | None = None) -> None:
        """Leave the rows' last update and give back their slots."""
        for row in rows:
            row.finish(reason, emissions)
            self._reporting[row.batch] = None
        with self._lock:
            moves = self._scheduler.finish(rows)
        self._executor.move(moves)

    def _tell_sinks(self, survived: type[BaseException] = Exception) -> None:
        """Hand every batch its news; a sink that fails costs its own batch."""
        while self._reporting:
            batch = next(iter(self._reporting))
            del self._reporting[batch]
            try:
                batch.sink(batch.take_news())
            except survived:
                log.exception("a sink failed; its batch is cancelled")
                with self._lock:
                    self._scheduler.cancel(batch.row_ids)

    def _wait_for_rows(self) -> bool:
        """Sleep until a row is in flight; False where the engine is closed and none is left."""
        if self._is_idle():
            # Only this thread touches the pool, so rows may come meanwhile: what is not given back by then can wait.
            for _ in self._executor.trim():
                if not self._is_idle():
                    break
        with self._lock:
            self._lock.wait_for(lambda: not self._is_idle())
            return self._scheduler.in_flight > 0

    def _is_idle(self) -> bool:
        return not self._scheduler.in_flight and not self._closed

    def _fail(self, error: BaseException) -> None:
        """Take no more rows, and end those in flight without the executor, whose state nobody knows."""
        log.exception("the decode loop failed; its rows end with an error")
        with self._lock:
            self.failure = f"the decode loop has ended ({error!r}): restart the server"
            rows = self._scheduler.abandon()
        for row in rows:
            if not row.finished:
                row.finish(FinishReason.ERROR)
            self._reporting[row.batch] = None
        self._tell_sinks(BaseException)
