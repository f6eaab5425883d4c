"""What every task works with."""

from __future__ import annotations

from dataclasses import dataclass, replace

from deploy.triton.manifest import Limits, Manifest
from service.batching.clock import Clock
from service.batching.rows import RowLane
from service.batching.tiers import Tier
from service.batching.windows import WindowLane
from service.errors import InvalidInput
from service.inference.fleet import Fleet
from service.tasks.text_room import TextRoom
from service.tasks.tokens import TextCodec
from service.telemetry import Metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Toolkit:
    """The gateway below the tasks, as long as a bundle is served."""

    rows: RowLane
    windows: WindowLane
    fleet: Fleet
    codec: TextCodec
    text_room: TextRoom
    manifest: Manifest
    clock: Clock
    metrics: Metrics

    @property
    def limits(self) -> Limits:
        """The bundle's limits, or those of the engines where they are stricter."""
        limits, engine = self.manifest.limits, self.fleet.capacity
        if engine is None:
            return limits
        return replace(
            limits,
            max_source_tokens=min(limits.max_source_tokens, engine.max_source_tokens),
            max_target_tokens=min(limits.max_target_tokens, engine.max_target_tokens),
            max_beams=min(limits.max_beams, engine.slots),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestTime:
    """When a request came, when its answer is of no use any more, on the batchers' clock, and how urgent it is."""

    arrived_s: float
    deadline_s: float
    tier: Tier = Tier.DEFAULT


def check_at_most(limit: int, **values: int | None) -> None:
    """Refuse a field above a limit that only the bundle knows. Raises InvalidInput naming field, value and limit."""
    for name, value in values.items():
        if value is not None and value > limit:
            raise InvalidInput(f"{name} is {value}, and {limit} is the limit: ask for less", param=name)
