"""A request to one model, and the batch that it leaves in."""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.batching.clock import Timer
from service.batching.lengths import NO_ANSWER, ExpectedAnswer
from service.batching.tiers import Tier
from service.errors import ServiceError
from service.inference.place import Place

Payload = TypeVar("Payload")


class State(enum.Enum):
    """Where a request stands."""

    NEW = enum.auto()
    WAITING = enum.auto()
    RUNNING = enum.auto()
    SETTLED = enum.auto()


@dataclass(kw_only=True, slots=True, eq=False)
class Pending(Generic[Payload]):
    """A request to one model, as queue and policies see it."""

    payload: Payload
    tokens: int
    """Length of its source."""

    group: Hashable
    """Only requests of one group may share a batch."""

    deadline_s: float
    """On the batcher's clock."""

    on_deadline: Callable[[], None]
    """Called at the deadline, waiting or running, unless it has been settled before."""

    on_refused: Callable[[ServiceError], None]
    """Called where a policy gives it up while it waits."""

    flow: Hashable = field(default_factory=object)
    """Whom it is for: flows take turns, however much each of them asks for. Without one it is a flow of its own."""

    slots: int = 1
    """Of the model's capacity, while it runs."""

    answer: ExpectedAnswer = NO_ANSWER
    tier: Tier = Tier.DEFAULT
    due_s: float = 0.0
    """When its turn is, among requests of its length; set when it is queued."""

    arrived_s: float = 0.0
    sent_s: float = 0.0
    state: State = State.NEW
    batch: RunningBatch[Payload] | None = field(default=None, repr=False)
    """What it was sent with; it knows the place."""

    begun_at_step: int = 0
    """Steps that its decoder had made when its answer was begun."""

    timer: Timer | None = field(default=None, repr=False)


@dataclass(kw_only=True, slots=True, eq=False)
class RunningBatch(Generic[Payload]):
    """Requests that were sent together and have not all come back."""

    requests: tuple[Pending[Payload], ...]
    place: Place
    """Where they run."""

    sent_s: float
    unsettled: int
    """Requests that have not come back."""

    begun: int = 0
    """Requests that the model has begun with, or will not begin any more."""

    @property
    def longest(self) -> int:
        """Tokens that every request is padded to."""
        return max(request.tokens for request in self.requests)

    @property
    def waits(self) -> bool:
        """Whether some of it has not been begun yet."""
        return self.begun < len(self.requests)
