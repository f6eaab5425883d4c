"""What every task works with."""

from __future__ import annotations

from dataclasses import dataclass

from deploy.triton.manifest import CrfScores, Limits
from service.batching.clock import Clock
from service.batching.rows import RowLane
from service.batching.windows import WindowLane
from service.errors import InvalidInput
from service.tasks.text_room import TextRoom
from service.tasks.tokens import TextCodec
from service.telemetry import Metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """The gateway below the tasks."""

    rows: RowLane
    windows: WindowLane
    codec: TextCodec
    text_room: TextRoom
    limits: Limits
    crf: CrfScores
    max_beams: int
    """The bundle's limit, or the engine's slots where they are fewer."""

    clock: Clock
    metrics: Metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestTime:
    """When a request came and when its answer is of no use any more, on the batchers' clock."""

    arrived_s: float
    deadline_s: float


def check_at_most(limit: int, **values: int | None) -> None:
    """Refuse a field above a limit that only the bundle knows. Raises InvalidInput naming field, value and limit."""
    for name, value in values.items():
        if value is not None and value > limit:
            raise InvalidInput(f"{name} is {value}, and {limit} is the limit: ask for less", param=name)
