"""What the gateway asks of whatever runs the models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from deploy.triton.protocol import BatchNews, EngineStats, GenerationBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerInfo:
    """Who answers."""

    name: str
    version: str


class InferenceClient(Protocol):
    """The models. Every method raises Unavailable where they cannot be reached, InferenceFailed where they fail."""

    async def start(self) -> None:
        """Prepare; need not connect."""

    async def close(self) -> None:
        """Release everything; rows in flight fail with Unavailable."""

    async def server(self) -> ServerInfo:
        """Name and version of a server that says it is ready."""

    async def infer(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a stateless model on a padded batch; every tensor begins with the batch dimension."""

    def generate(self, batch: GenerationBatch) -> AsyncIterator[tuple[BatchNews, EngineStats]]:
        """News until every row has finished."""

    async def cancel(self, row_ids: Iterable[int]) -> None:
        """End rows; their last updates still come. Unknown ids are ignored."""

    async def stats(self) -> EngineStats:
        """Occupancy of the engine."""
