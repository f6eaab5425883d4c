"""A place is tried out before its first request, so that the first predictions are about this machine.

A few batches of each kind go through. Windows go twice, and are timed the second time: the first run of a shape takes
memory that later ones find. What would not end within the time that is left is left out.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import structlog

from deploy.triton.protocol import GenerationBatch, Row, Sampling, Source, Task
from service.batching.load import PlaceLoad
from service.batching.windows import MODEL
from service.errors import ServiceError
from service.inference.canary import CANARY_TOKEN
from service.inference.protocol import InferenceClient, ServerInfo

log = structlog.get_logger(__name__)

SHAPES = ((1, 16), (4, 32), (1, 128), (8, 64), (4, 128), (1, 512))
"""Rows and tokens: they tell a call, a row, products and attention apart."""

NEW_TOKENS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What is tried out at one place."""

    client: InferenceClient
    rows: PlaceLoad
    windows: PlaceLoad
    special_tokens: Mapping[str, int]
    window_tokens: int

    async def run(self, server: ServerInfo, most_s: float) -> None:
        """Try it out for so long at most. Raises Unavailable or InferenceFailed."""
        began_s = time.monotonic()
        ends_s = began_s + most_s
        engine = server.engine
        with suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                for rows, tokens in SHAPES:
                    left_s = ends_s - time.monotonic()
                    if tokens <= self.window_tokens and 2 * self.windows.latency.predict_s(rows, tokens) < left_s:
                        await self._windows(rows, tokens)
                    left_s = ends_s - time.monotonic()
                    fits = rows <= engine.slots and tokens <= engine.max_source_tokens
                    if fits and rows * tokens <= engine.prefill_tokens and self._rows_s(rows, tokens) < left_s:
                        for task in (Task.GENERATION, Task.SUMMARY):
                            await self._rows(task, rows, tokens)
        log.info("calibrated", place=self.rows.place.name, seconds=round(time.monotonic() - began_s, 3))

    def _rows_s(self, rows: int, tokens: int) -> float:
        """Expected for a shape, of both tasks."""
        steps_s = NEW_TOKENS * self.rows.steps.predict_s(rows, rows * tokens)
        return 2 * (self.rows.latency.predict_s(rows, tokens) + steps_s)

    async def _windows(self, rows: int, tokens: int) -> None:
        ids = np.full((rows, tokens), CANARY_TOKEN, np.int64)
        ids[:, 0], ids[:, tokens // 2] = self.special_tokens["<qa>"], self.special_tokens["<sep>"]
        inputs: dict[str, np.ndarray] = {"input_ids": ids, "lengths": np.full((rows, 1), tokens, np.int32)}
        await self.client.infer(MODEL, inputs)
        before = await self.client.times(MODEL)
        await self.client.infer(MODEL, inputs)
        ran = await self.client.times(MODEL) - before
        # Somebody else's may have run meanwhile.
        if ran.runs == 1 and ran.rows == rows:
            self.windows.latency.observe(rows, tokens, ran.seconds)

    async def _rows(self, task: Task, rows: int, tokens: int) -> None:
        ids = np.full(tokens, CANARY_TOKEN, np.int64)
        ids[0] = self.special_tokens[f"<{task.name.lower()}>"]
        sampling = Sampling(max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, temperature=0.0)
        batch = tuple(Row(row_id=random.getrandbits(62), source=Source(ids), sampling=sampling) for _ in range(rows))
        news = self.client.generate(GenerationBatch(task=task, rows=batch))
        try:
            async for told, stats in news:
                self.rows.steps.learn(stats)
                for prefill in told.prefills:
                    self.rows.latency.observe(prefill.rows, prefill.tokens, prefill.seconds)
        except asyncio.CancelledError:
            with suppress(ServiceError):
                await self.client.cancel([row.row_id for row in batch])
            raise
