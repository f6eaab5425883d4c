"""One small request of every task: what the models must answer before a place counts as ready."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from contextlib import suppress

import numpy as np

from deploy.triton.protocol import FinishReason, GenerationBatch, Row, Sampling, Source, Task
from service.errors import InferenceFailed, ServiceError
from service.inference.protocol import InferenceClient

CANCEL_TIMEOUT_S = 1.0
CANARY_TOKEN = 100
"""Some token that is not a special one."""


async def ask_every_task(client: InferenceClient, special_tokens: Mapping[str, int]) -> None:
    """One token of each task that writes, one routed, one question. Raises Unavailable or InferenceFailed."""
    for task, token in ((Task.GENERATION, "<generation>"), (Task.SUMMARY, "<summary>"), (Task.AUTO, "<s>")):
        row = Row(
            row_id=random.getrandbits(62),
            source=Source(np.array([special_tokens[token], CANARY_TOKEN], np.int64)),
            sampling=Sampling(max_new_tokens=1, temperature=0.0),
        )
        reason = await _ending(client, GenerationBatch(task=task, rows=(row,)))
        if reason not in (FinishReason.STOP, FinishReason.LENGTH):
            raise InferenceFailed(f"the canary for {task.name.lower()} ended with {reason.name}")
    question = [special_tokens["<qa>"], CANARY_TOKEN, special_tokens["<sep>"], CANARY_TOKEN]
    inputs: dict[str, np.ndarray] = {
        "input_ids": np.array([question], np.int64),
        "lengths": np.array([[len(question)]], np.int32),
    }
    emissions_BS3 = (await client.infer("qa", inputs))["emissions"]
    if not np.isfinite(emissions_BS3).all():
        raise InferenceFailed("the canary for qa came back with scores that are no numbers")


async def _ending(client: InferenceClient, batch: GenerationBatch) -> FinishReason:
    """How the one row of a batch ended; one that is not waited for any more is cancelled."""
    reason = FinishReason.RUNNING
    try:
        async for news, _ in client.generate(batch):
            if news.updates:
                reason = news.updates[-1].finish_reason
    except asyncio.CancelledError:
        with suppress(ServiceError, TimeoutError):
            async with asyncio.timeout(CANCEL_TIMEOUT_S):
                await client.cancel([batch.rows[0].row_id])
        raise
    return reason
