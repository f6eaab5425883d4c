"""What one lane has running at one place, and how much more may go there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic

from service.batching.decoding import Decoding
from service.batching.latency import LatencyModel
from service.batching.pending import Payload, Pending, RunningBatch
from service.batching.steps import StepTimes
from service.inference.place import Place


@dataclass(kw_only=True, slots=True, eq=False)
class PlaceLoad(Generic[Payload]):
    """One lane's share of a place."""

    place: Place
    capacity: Callable[[Place], int]
    """Slots that may be taken there, from what the place says of itself."""

    latency: LatencyModel
    """Of batches there."""

    steps: StepTimes = field(default_factory=StepTimes)
    """Of decode steps there."""

    decoding: Decoding = field(init=False)
    """What runs there, as steps see it."""

    tokens: Callable[[Place], int | None] = lambda _: None
    """Tokens that the place takes in one batch; None leaves it to the lane's limits."""

    ahead: int | None = None
    """Batches that may wait there for those before them; None is any number. One is enough to keep a place busy, and
    what is not sent yet can still be joined, overtaken or given up."""

    slots: int = 0
    """Taken by what runs."""

    running: dict[Pending[Payload], None] = field(default_factory=dict)
    batches: dict[RunningBatch[Payload], None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.decoding = Decoding(self.steps)

    @property
    def free_slots(self) -> int:
        """Slots that can be taken now."""
        return self.capacity(self.place) - self.slots

    @property
    def accepts(self) -> bool:
        """Whether a further batch may go there now, room for it aside."""
        if not self.place.usable:
            return False
        return self.ahead is None or sum(batch.waits for batch in self.batches) < self.ahead

    @property
    def busy(self) -> float:
        """Share of the capacity that is taken."""
        return self.slots / max(1, self.capacity(self.place))

    def begin(self, requests: tuple[Pending[Payload], ...], now_s: float) -> RunningBatch[Payload]:
        """Take what a batch needs."""
        batch = RunningBatch(requests=requests, place=self.place, sent_s=now_s, unsettled=len(requests))
        for request in requests:
            request.batch, request.sent_s = batch, now_s
            self.running[request] = None
            self.slots += request.slots
            self.decoding.add(request)
        self.batches[batch] = None
        return batch

    def release(self, request: Pending[Payload]) -> None:
        """Give back what a running request held."""
        batch = request.batch
        assert batch is not None, "a running request is part of a batch"
        del self.running[request]
        self.slots -= request.slots
        self.decoding.remove(request)
        batch.unsettled -= 1
        if not batch.unsettled:
            del self.batches[batch]
