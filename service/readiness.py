"""Whether the service can answer: it says so only after a canary of every task came back from the models.

starting ─▶ canaries ─▶ ready ─── a check every second ──▶ …
               ▲                       │ fails, or a batch did
               └────── not ready ◀─────┘
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace

import numpy as np
import structlog

from deploy.triton.protocol import FinishReason, GenerationBatch, Row, Sampling, Source, Task
from service.batching.rows import RowLane
from service.errors import InferenceFailed, ServiceError, Unavailable
from service.inference.protocol import InferenceClient, ServerInfo

log = structlog.get_logger(__name__)

CHECK_INTERVAL_S = 1.0
"""Between two checks of a service that is ready. A check asks for health and occupancy: two round trips."""

RETRY_INTERVAL_S = 0.25
CANARY_TIMEOUT_S = 30.0
"""The first requests after a start take the memory and tune the kernels that later ones find."""

CANARY_TEXT = 100
"""Some token that is not a special one."""


class Readiness:
    """Watches the models in the background."""

    def __init__(self, client: InferenceClient, special_tokens: Mapping[str, int], timeout_s: float) -> None:
        """`timeout_s`: the patience of a check of a service that is ready."""
        self._client, self._special, self._timeout_s = client, special_tokens, timeout_s
        self.reason: str | None = "starting: no canary request has come back yet"
        """Why the service is not ready; None where it is."""

        self.server: ServerInfo | None = None
        """Who answers, once known."""

        self._doubt = asyncio.Event()

    def doubt(self) -> None:
        """A batch failed: prove again that the models answer."""
        if self.reason is None:
            self.reason = "a batch failed, and no canary request has come back since"
        self._doubt.set()

    async def watch(self, rows: RowLane) -> None:
        """Check for ever, and keep the engine's occupancy fresh where no row reports it."""
        while True:
            self._doubt.clear()
            before = self.reason
            try:
                await self._check(rows)
            except ServiceError as error:
                self.reason = error.message
                if isinstance(error, Unavailable):
                    # Whatever held slots went with the engine.
                    rows.stats = replace(rows.stats, slots_used=0, waiting_rows=0)
            except TimeoutError:
                self.reason = "the models did not answer a canary request in time"
            except Exception as error:
                # Whatever else: a watcher that ends in silence would leave its last word standing.
                log.exception("a readiness check failed")
                self.reason = f"a readiness check failed: {error!r}"
            if self.reason != before:
                log.info("readiness", ready=self.reason is None, reason=self.reason)
            await self._pause()

    async def _check(self, rows: RowLane) -> None:
        proven = self.reason is None
        async with asyncio.timeout(self._timeout_s if proven else CANARY_TIMEOUT_S):
            self.server = await self._client.server()
            if not proven:
                await self._ask_every_task()
            rows.stats = await self._client.stats()
        if not self._doubt.is_set():
            self.reason = None

    async def _ask_every_task(self) -> None:
        """One token of each task that writes, one routed, one question."""
        for task, token in ((Task.GENERATION, "<generation>"), (Task.SUMMARY, "<summary>"), (Task.AUTO, "<s>")):
            row = Row(
                row_id=random.getrandbits(62),
                source=Source(np.array([self._special[token], CANARY_TEXT], np.int64)),
                sampling=Sampling(max_new_tokens=1, temperature=0.0),
            )
            async for news, _ in self._client.generate(GenerationBatch(task=task, rows=(row,))):
                for reason in (update.finish_reason for update in news.updates):
                    if reason not in (FinishReason.STOP, FinishReason.LENGTH):
                        raise InferenceFailed(f"the canary for {task.name.lower()} ended with {reason.name}")
        question = [self._special["<qa>"], CANARY_TEXT, self._special["<sep>"], CANARY_TEXT]
        inputs: dict[str, np.ndarray] = {
            "input_ids": np.array([question], np.int64),
            "lengths": np.array([[len(question)]], np.int32),
        }
        emissions_BS3 = (await self._client.infer("qa", inputs))["emissions"]
        if not np.isfinite(emissions_BS3).all():
            raise InferenceFailed("the canary for qa came back with scores that are no numbers")

    async def _pause(self) -> None:
        if self.reason is not None:
            await asyncio.sleep(RETRY_INTERVAL_S)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(CHECK_INTERVAL_S):
                await self._doubt.wait()
