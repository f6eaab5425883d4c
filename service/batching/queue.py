"""The bounded queue in front of one model, counted in source tokens, in an order that is fair between clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic

from service.batching.fair_order import FairOrder
from service.batching.lines import Lines
from service.batching.pending import Payload, Pending


class QueueFull(Exception):
    """The queue has no room for so many tokens."""


class RequestQueue(Generic[Payload]):
    """Requests in the order of their turns: fair between flows, by arrival within one. Any can leave at any time."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.tokens = 0
        self.lines = Lines()
        """The same requests, by group and length."""

        self._order: FairOrder[Pending[Payload]] = FairOrder()

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Pending[Payload]]:
        return iter(self._order)

    def add(self, request: Pending[Payload], *, bounded: bool = True) -> None:
        """Put a request where its turn is; an empty queue takes one of any size. Raises QueueFull where `bounded`."""
        if bounded and self and self.tokens + request.tokens > self.max_tokens:
            raise QueueFull
        self.lines.add(request, self._order.add(request, request.flow, request.tokens))
        self.tokens += request.tokens

    def take(self, request: Pending[Payload]) -> None:
        """A request gets its turn, which counts for its flow. Raises KeyError where it is not in the queue."""
        self._order.take(request, request.tokens)
        self.lines.remove(request)
        self.tokens -= request.tokens

    def remove(self, request: Pending[Payload]) -> None:
        """A request leaves without its turn. Raises KeyError where it is not in the queue."""
        self._order.remove(request)
        self.lines.remove(request)
        self.tokens -= request.tokens
