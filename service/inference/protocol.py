"""What the gateway asks of whatever runs the models."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from deploy.triton.protocol import BatchNews, EngineStats, GenerationBatch
from service.errors import ServiceError


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleIdentity:
    """Which bundle somebody serves."""

    name: str
    sha256: str
    """Digest of its manifest, which holds the digests of all its files."""

    def __str__(self) -> str:
        return f"{self.name!r} ({self.sha256[:12]})"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineCapacity:
    """What the engine takes, by its own account."""

    slots: int
    prefill_tokens: int
    """Source tokens, padding included, that it encodes at once."""

    max_source_tokens: int
    max_target_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerInfo:
    """Who answers, with what."""

    name: str
    version: str
    bundle: BundleIdentity
    engine: EngineCapacity


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelTimes:
    """What a stateless model has run since it was loaded, by its server's own account: sums."""

    runs: int
    rows: int
    seconds: float
    """Computing, without any queue or transport."""

    def __sub__(self, earlier: ModelTimes) -> ModelTimes:
        return ModelTimes(
            runs=self.runs - earlier.runs, rows=self.rows - earlier.rows, seconds=self.seconds - earlier.seconds
        )


class InferenceClient(Protocol):
    """The models. Every method raises Unavailable where they cannot be reached, InferenceFailed where they fail."""

    async def start(self, on_lost: Callable[[ServiceError], None]) -> None:
        """Prepare; need not connect. `on_lost` is called when a connection that stood has broken."""

    async def close(self) -> None:
        """Release everything; rows in flight fail with Unavailable."""

    async def server(self) -> ServerInfo:
        """Who a server is that says it is ready, and what it serves."""

    async def infer(self, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run a stateless model on a padded batch; every tensor begins with the batch dimension.

        Where it is cancelled, it ends when nothing is computed for it any more: until then it takes its place.
        """

    async def times(self, model: str) -> ModelTimes:
        """What a stateless model has run so far."""

    def generate(self, batch: GenerationBatch) -> AsyncIterator[tuple[BatchNews, EngineStats]]:
        """News until every row has finished."""

    async def cancel(self, row_ids: Iterable[int]) -> None:
        """End rows; their last updates still come. Unknown ids are ignored."""

    async def stats(self) -> EngineStats:
        """Occupancy of the engine."""
