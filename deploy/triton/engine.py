"""The continuous-batching engine: rows enter and leave between two steps of one decode loop.

    submit ─▶ waiting ─▶ admitted ─▶ encoder ─┬─▶ generative prefill ─▶ front of the pool ─┐
              (in order)                      ├─▶ pointer prefill ────▶ back of the pool ──┼─▶ a token a step each
                                              └─▶ extractive: emissions, done at once      ┘

Any thread may submit and cancel; one thread steps. Batches of any age decode together, and a row's tokens do not
depend on what else is decoded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from operator import attrgetter
from pathlib import Path

import numpy as np

from .beams import BeamSearch
from .cache import CachePool, CacheShape
from .decoder import Decoder
from .limits import EngineSettings, RowLimits, check_batch
from .manifest import load_manifest
from .prefill import Encoder, next_group
from .protocol import (
    BatchNews,
    EngineStats,
    FinishReason,
    GenerationBatch,
    PrefillTime,
    Sink,
    StepTotals,
    Task,
)
from .requests import LiveBatch, LiveRow
from .sampling import Sampler, TokenRules, choose_tokens
from .slots import Lane, Side, SlotMap

log = logging.getLogger(__name__)

GRAPHS = ("encoder", "extractive", "generative_prefill", "generative_step", "pointer_prefill", "pointer_step")
"""What the engine reads of a bundle."""


class Engine:
    """Answers batches of rows with the graphs of one bundle."""

    def __init__(self, bundle: Path, settings: EngineSettings | None = None) -> None:
        """Load the graphs and allocate the cache. Raises BundleError where the bundle is damaged or incomplete."""
        settings = settings or EngineSettings()
        manifest = load_manifest(bundle, verify=settings.verify, graphs=GRAPHS)
        config = manifest.config
        self.limits = RowLimits.of(manifest, settings)
        self.settings = settings
        self._rules = TokenRules.of(list(manifest.special_tokens.values()), int(config["eos_token_id"]))
        self._first_token = int(config["bos_token_id"])
        self._slots: SlotMap[LiveRow] = SlotMap(settings.slots)
        self._pool = CachePool(
            CacheShape(
                slots=settings.slots,
                layers=int(config["decoder_layers"]),
                heads=int(config["num_heads"]),
                head_width=int(config["d_model"]) // int(config["num_heads"]),
                max_source=self.limits.max_source_tokens,
                max_target=self.limits.max_target_tokens,
                vocabulary=self.limits.vocabulary,
                warm_positions=settings.warm_positions,
            )
        )
        self._encoder = Encoder(bundle, manifest, threads=settings.threads)
        self._decoders = {
            task: Decoder(name, bundle, manifest, self._pool, side, threads=settings.threads, copies=copies)
            for task, name, side, copies in (
                (Task.GENERATION, "generative", Side.FRONT, False),
                (Task.SUMMARY, "pointer", Side.BACK, True),
            )
        }
        self._news = threading.Condition()
        self._closed = False
        self._rows: dict[int, LiveRow] = {}
        self._waiting: deque[LiveRow] = deque()
        self._cancelled: set[int] = set()
        self._reporting: dict[LiveBatch, None] = {}
        self._totals = dict.fromkeys(self._decoders, StepTotals())

    @property
    def stats(self) -> EngineStats:
        """Occupancy at this moment, and what has been decoded so far."""
        return EngineStats(
            slots_used=self._slots.used,
            slots_total=self._slots.slots,
            waiting_rows=len(self._waiting),
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
            RuntimeError: the engine is closed.
        """
        check_batch(batch, self.limits)
        live = LiveBatch(sink)
        rows = [LiveRow.start(row, batch.task, live, self._rules) for row in batch.rows]
        with self._news:
            if self._closed:
                raise RuntimeError("the engine is closed")
            taken = [row.row_id for row in batch.rows if row.row_id in self._rows]
            if taken:
                raise ValueError(f"row {taken[0]} is in flight already: give every row an id of its own")
            self._rows.update((each.row.row_id, each) for each in rows)
            self._waiting.extend(rows)
            self._news.notify()

    def cancel(self, row_ids: Iterable[int]) -> None:
        """End rows before the next step; ids that are not in flight are ignored."""
        with self._news:
            self._cancelled.update(row_id for row_id in row_ids if row_id in self._rows)
            self._news.notify()

    def close(self) -> None:
        """Take no more rows and cancel those in flight; `run` returns after it has told their sinks."""
        with self._news:
            self._closed = True
            self._cancelled.update(self._rows)
            self._news.notify()

    def run(self, after_step: Callable[[], None] | None = None) -> None:
        """Step until `close`, asleep while there is nothing to do. `after_step` is called between steps."""
        while True:
            if self.step():
                if after_step is not None:
                    after_step()
                continue
            with self._news:
                if self._closed:
                    return
                if not self._rows:
                    self._pool.trim()
                    self._news.wait_for(lambda: self._rows or self._closed)

    def step(self) -> bool:
        """One iteration; False where no row was in flight."""
        if not self._rows:
            return False
        self._drop_cancelled()
        for group in self._admit():
            self._prefill(group)
        for task, decoder in self._decoders.items():
            self._decode(task, decoder)
        self._tell_sinks()
        return True

    def _drop_cancelled(self) -> None:
        with self._news:
            rows = [self._rows[row_id] for row_id in self._cancelled if row_id in self._rows]
            self._cancelled.clear()
            gone = {id(row) for row in rows}
            if any(not row.lanes for row in rows):
                self._waiting = deque(row for row in self._waiting if id(row) not in gone)
        self._finish(rows, FinishReason.CANCELLED)

    def _admit(self) -> list[list[LiveRow]]:
        """Take waiting rows in their order, while slots and this step's tokens last: each batch's rows as one group.

        The first row that does not fit holds up those behind it, so a search of many beams is never overtaken for
        ever by rows that need one slot.
        """
        groups: list[list[LiveRow]] = []
        free, tokens = self._slots.free, self.settings.prefill_tokens
        with self._news:
            while self._waiting:
                _, rows = next(groupby(self._waiting, key=attrgetter("batch")))
                group = next_group(rows, free, tokens, is_first=not groups)
                if not group:
                    break
                for row in group:
                    self._waiting.popleft().admit()
                    free -= row.slots_needed
                tokens -= len(group) * max(row.row.source.cost for row in group)
                groups.append(group)
        return groups

    def _prefill(self, rows: Sequence[LiveRow]) -> None:
        """Encode the sources of one batch's rows together, then hand each to what its task reads."""
        began_s = time.perf_counter()
        with self._isolated(rows, "the encoder"):
            memory_BSD, routes_B3 = self._encoder.encode([row.row.source for row in rows])
            for row, route in zip(rows, routes_B3, strict=True):
                if row.task is Task.AUTO:
                    row.route, row.task = route, Task(int(route.argmax()))
            for task in (Task.GENERATION, Task.SUMMARY, Task.QA):
                chosen = [index for index, row in enumerate(rows) if row.task is task]
                if chosen:
                    self._start(task, [rows[index] for index in chosen], memory_BSD[chosen])
            batch, seconds = rows[0].batch, time.perf_counter() - began_s
            batch.prefills.append(PrefillTime(rows=len(rows), tokens=memory_BSD.shape[1], seconds=seconds))
            self._reporting[batch] = None

    def _start(self, task: Task, rows: Sequence[LiveRow], memory_BSD: np.ndarray) -> None:
        """Read the answers off the encoder, or fill slots of the task's decoder."""
        with self._isolated(rows, f"prefill for {task.name}"):
            if task is Task.QA:
                lengths = [row.row.source.cost for row in rows]
                for row, emissions in zip(rows, self._encoder.extract(memory_BSD, lengths), strict=True):
                    self._finish([row], FinishReason.STOP, emissions)
                return
            decoder = self._decoders[task]
            cross = decoder.prefill(memory_BSD)
            for index, row in enumerate(rows):
                row.start_decoding([self._slots.acquire(decoder.side, row) for _ in range(row.slots_needed)])
                source = [each_BHSE[index] for each_BHSE in cross]
                for lane in row.lanes:
                    self._pool.write_source(lane.slot, decoder.footprint, source, row.row.source.ids, self._first_token)

    def _decode(self, task: Task, decoder: Decoder) -> None:
        """One token for every lane of a decoder."""
        lanes = self._slots.lanes(decoder.side)
        if not lanes:
            return
        with self._isolated([lane.owner for lane in lanes], f"a {decoder.name} step"):
            bounds = self._slots.bounds(decoder.side)
            began_s, cached_tokens = time.perf_counter(), self._pool.cached_tokens(bounds)
            scores_NV = decoder.step(bounds)
            self._pool.grow(bounds)
            self._rules.apply(scores_NV)
            reasons = self._choose(decoder, lanes, bounds, scores_NV)
            before = self._totals[task]
            self._totals[task] = StepTotals(
                steps=before.steps + 1,
                rows=before.rows + len(lanes),
                cached_tokens=before.cached_tokens + cached_tokens,
                seconds=before.seconds + time.perf_counter() - began_s,
            )
            for row, reason in reasons.items():
                if reason is FinishReason.RUNNING and row.report():
                    self._reporting[row.batch] = None
                elif reason is FinishReason.ERROR:
                    log.error("row %d: no token has a finite score", row.row.row_id)
            for reason in (FinishReason.STOP, FinishReason.LENGTH, FinishReason.ERROR):
                self._finish([row for row, each in reasons.items() if each is reason], reason)

    def _choose(
        self, decoder: Decoder, lanes: Sequence[Lane[LiveRow]], bounds: slice, scores_NV: np.ndarray
    ) -> dict[LiveRow, FinishReason]:
        """Write every lane's next token to the pool; how each row stands."""
        searches = [lane.owner.search for lane in lanes]
        tokens_N = choose_tokens(scores_NV, [each if isinstance(each, Sampler) else None for each in searches])
        self._pool.tokens[bounds, 0] = tokens_N
        reasons: dict[LiveRow, FinishReason] = {}
        for lane, search, token in zip(lanes, searches, tokens_N.tolist(), strict=True):
            if isinstance(search, Sampler):
                reasons[lane.owner] = search.accept(token)
            elif lane.owner not in reasons:
                reasons[lane.owner] = self._advance_beams(decoder, lane.owner, search)
        return reasons

    def _advance_beams(self, decoder: Decoder, row: LiveRow, search: BeamSearch) -> FinishReason:
        slots = np.array([lane.slot for lane in row.lanes])
        chosen = search.advance(self._pool.logits[slots])
        self._pool.reorder(slots, chosen.parents, decoder.footprint)
        self._pool.tokens[slots, 0] = chosen.tokens
        return chosen.finish_reason

    @contextmanager
    def _isolated(self, rows: Iterable[LiveRow], doing: str) -> Iterator[None]:
        """Whatever goes wrong ends these rows and no others."""
        try:
            yield
        except Exception:
            ended = [row for row in dict.fromkeys(rows) if not row.finished]
            log.exception("%s failed; %d rows end with an error", doing, len(ended))
            self._finish(ended, FinishReason.ERROR)

    def _finish(self, rows: Sequence[LiveRow], reason: FinishReason, emissions: np.ndarray | None = None) -> None:
        """Give back the rows' slots and leave their last update."""
        for move in self._slots.release(lane for row in rows for lane in row.lanes):
            footprint = next(each.footprint for each in self._decoders.values() if each.side is move.side)
            self._pool.move(move, footprint)
        for row in rows:
            row.finish(reason, emissions)
            row.lanes = []
            self._reporting[row.batch] = None
        with self._news:
            for row in rows:
                del self._rows[row.row.row_id]

    def _tell_sinks(self) -> None:
        for batch in self._reporting:
            if (news := batch.take_news()) is not None:
                self._tell(batch, news)
        self._reporting.clear()

    def _tell(self, batch: LiveBatch, news: BatchNews) -> None:
        try:
            batch.sink(news)
        except Exception:
            log.exception("a sink failed; its batch is cancelled")
            with self._news:
                self._cancelled.update(row_id for row_id, row in self._rows.items() if row.batch is batch)
