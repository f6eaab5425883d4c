"""A FastAPI application without batching: what most people write first, in front of whatever reads a window."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from deploy.benchmark.peers.options import HOST, PeerOptions
from deploy.benchmark.peers.reading import QuestionReader

ReadWindow = Callable[[np.ndarray], Awaitable[np.ndarray]]
"""Token ids INT64 [S] → tag scores FP32 [S,3]."""


class Body(BaseModel):
    """`POST /v1/qa`."""

    question: str
    context: str


def serve(options: PeerOptions, opened: AbstractAsyncContextManager[ReadWindow]) -> None:
    """Serve until a signal; `opened` is entered before the first request and left behind the last."""
    reader = QuestionReader(options.bundle)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with opened as app.state.read_window:
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/v1/qa")
    async def answer(body: Body) -> dict[str, Any]:
        question = await reader.read(body.question, body.context)
        emissions = await asyncio.gather(*map(app.state.read_window, question.windows))
        return reader.answer(question, emissions)

    uvicorn.run(app, host=HOST, port=options.port, access_log=False, log_level="warning")
