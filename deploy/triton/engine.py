"""The continuous-batching engine: rows enter and leave between two steps of one decode loop.

    submit ─▶ scheduler: waiting ─▶ a batch's group ─▶ executor: encoder ─┬─▶ generative prefill ─▶ front of the pool ─┐
                         (in order)                     (on a thread)     ├─▶ pointer prefill ────▶ back of the pool ──┤
                                                                          └─▶ extractive: done at once                 │
    sinks ◀── news ◀── rows ◀───────────────────── a token a step each, chosen by the executor ◀───────────────────────┘

Any thread may submit and cancel; one thread steps, and another encodes meanwhile (`prefill.py`). Batches of any age
decode together, and a row's tokens do not depend on what else is decoded. The scheduler decides who runs, an executor
runs it, and this module tells the sinks.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from .cpu_executor import cpu_executor
from .cuda_executor import cuda_executor
from .executor import Executor
from .limits import EngineSettings, RowLimits, check_batch
from .manifest import load_manifest
from .pacing import Pace
from .prefill import Part, Prefill, PrefillThread
from .protocol import EngineStats, FinishReason, GenerationBatch, PrefillTime, Sink, StepTotals, Task
from .requests import LiveBatch, LiveRow
from .rules import TokenRules
from .scheduler import Scheduler
from .slots import SIDES

log = logging.getLogger(__name__)

GRAPHS = ("encoder", "extractive", "generative_prefill", "generative_step", "pointer_prefill", "pointer_step")
"""What the engine reads of a bundle."""

LOOK_UP_S = 0.25
"""How long a step waits for a prefill beside which nothing is decoded: whoever watches for clients that leave is called
between steps."""


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
        make = cuda_executor if settings.device == "cuda" else cpu_executor
        self._executor: Executor = make(bundle, manifest, settings, self.limits, self._rules)
        self._scheduler: Scheduler[LiveRow] = Scheduler(slots=settings.slots, prefill_tokens=settings.prefill_tokens)
        self._lock = threading.Condition()
        """Held for moments, to look at the scheduler or to change it; never while anything is computed or told."""

        self._beside = PrefillThread(self._wake)
        self._groups: deque[list[LiveRow]] = deque()
        """To be encoded next."""

        self._prefill: Prefill | None = None
        """Being encoded, or encoded and not decoded yet."""

        self._pace = Pace(settings.gap_steps)
        self._paced = False

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
                waiting_rows=self._scheduler.waiting + sum(map(len, self._groups)),
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

        While sources are encoded, the tokens of rows that are being decoded come `gap_steps` apart. Whatever else ends
        it, `after_step` included, ends every row with an error and is then told to whoever submits.
        """
        self._paced = True
        try:
            while self._wait_for_rows():
                self.step()
                if after_step is not None:
                    after_step()
        except BaseException as error:
            self._fail(error)
            if not isinstance(error, Exception):
                raise
        finally:
            self._beside.close()

    def step(self) -> bool:
        """One iteration; False where no row was in flight.

        Rows that wait are encoded and take part in it. `run` does not wait for them longer than those that are being
        decoded may: sources then go on being encoded beside the steps, and their rows join a later one.
        """
        with self._lock:
            if not self._scheduler.in_flight:
                return False
            cancelled = self._scheduler.take_cancelled()
        if cancelled:
            self._withdraw(cancelled)
        self._encode()
        began_s, rows = time.perf_counter(), 0
        for task in SIDES:
            rows += self._decode(task)
        if rows:
            self._pace.step(rows, began_s, time.perf_counter(), beside_prefill=self._prefill is not None)
        self._tell_sinks()
        return True

    def _withdraw(self, rows: Sequence[LiveRow]) -> None:
        """End rows that were cancelled, and the prefill that nobody waits for without them."""
        for row in rows:
            row.withdraw()
        self._finish(rows, FinishReason.CANCELLED)
        if self._prefill is not None and not self._prefill.is_wanted and not self._prefill.encoding.cancel():
            self._executor.interrupt()

    def _encode(self) -> None:
        """Encode the sources of rows that wait, group by group, and let the rows of those that are ready start."""
        if self._prefill is None and not self._groups:
            with self._lock:
                self._groups.extend(self._scheduler.next_groups())
        while self._begin_prefill() and self._await_prefill():
            self._start_rows()

    def _begin_prefill(self) -> bool:
        """Begin with the next group where none is being encoded; whether one is then."""
        while self._prefill is None and self._groups:
            with self._lock:
                rows = [row for row in self._groups.popleft() if not row.finished]
            if rows:
                self._prefill = self._beside.begin(self._executor, rows)
        return self._prefill is not None

    def _await_prefill(self) -> bool:
        """Wait for the sources under way; False where something else is to be done first."""
        prefill = self._prefill
        assert prefill is not None, "a prefill has been begun"
        patience_s: float | None = None
        if self._paced:
            now_s = time.perf_counter()
            due_s = self._pace.due_s(now_s, prefill.began_s) if self._scheduler.slots_used else now_s + LOOK_UP_S
            patience_s = max(0.0, due_s - now_s)
        with self._lock:
            self._lock.wait_for(lambda: prefill.encoding.done() or self._scheduler.has_cancelled, patience_s)
        return prefill.encoding.done()

    def _start_rows(self) -> None:
        """The prefill's rows go on to what their tasks read."""
        prefill, self._prefill = self._prefill, None
        assert prefill is not None, "a prefill has ended"
        if not prefill.is_wanted:
            return
        began_s, rows = time.perf_counter(), prefill.rows
        with self._isolated(rows, "the encoder"):
            encoding = prefill.encoding.result()
            for row, route in zip(rows, encoding.encoded.routes_B3, strict=True):
                row.send_to(route)
            for part in encoding.parts:
                self._start(part, [rows[index] for index in part.indices])
            seconds = encoding.seconds + time.perf_counter() - began_s
            positions = encoding.encoded.positions
            rows[0].batch.prefills.append(PrefillTime(rows=len(rows), tokens=positions, seconds=seconds))
            self._reporting[rows[0].batch] = None

    def _start(self, part: Part, encoded_rows: Sequence[LiveRow]) -> None:
        """Tell the answers that were read off the encoder, or fill slots of the task's decoder."""
        with self._isolated(encoded_rows, f"prefill for {part.task.name}"):
            if part.error is not None:
                raise part.error
            indices = [index for index, row in enumerate(encoded_rows) if not row.finished]
            rows = [encoded_rows[index] for index in indices]
            if part.task is Task.QA:
                for index, row in zip(indices, rows, strict=True):
                    self._finish([row], FinishReason.STOP, part.prepared[index])
                return
            with self._lock:
                for row in rows:
                    self._scheduler.assign(row, SIDES[part.task])
            self._executor.start(part.task, part.prepared, indices, rows)
            for row in rows:
                row.start_decoding()

    def _decode(self, task: Task) -> int:
        """One token for every row of a decoder; how many sequences that were."""
        rows, bounds = self._scheduler.decoding(SIDES[task])
        if not rows:
            return 0
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
        return bounds.stop - bounds.start

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

    def _wake(self) -> None:
        """The stepping thread may have something to do."""
        with self._lock:
            self._lock.notify()

    def _is_idle(self) -> bool:
        return not self._scheduler.in_flight and not self._closed

    def _fail(self, error: BaseException) -> None:
        """Take no more rows, and end those in flight without the executor, whose state nobody knows."""
        log.exception("the decode loop failed; its rows end with an error")
        with self._lock:
            self.failure = f"the decode loop has ended ({error!r}): restart the server"
            rows = self._scheduler.abandon()
            self._groups.clear()
        for row in rows:
            if not row.finished:
                row.finish(FinishReason.ERROR)
            self._reporting[row.batch] = None
        self._tell_sinks(BaseException)
        self._executor.interrupt()
