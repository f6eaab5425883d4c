"""Requests in flight: how many there may be, how many bytes their bodies may hold, and whether new ones may come.

visit ─▶ receive (each piece of the body) ─▶ enter (the body is there) ─▶ join (its class) ─▶ … the answer's last byte:
all is given back
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from service.addresses import Peer
from service.batching.tiers import Tier
from service.errors import Draining, TooManyBytes, TooManyRequests, TooManyRequestsFromPeer
from service.settings import LimitSettings, TiersSettings


class Admission:
    """The door of the gateway."""

    def __init__(self, limits: LimitSettings, tiers: TiersSettings | None = None) -> None:
        self._limits, self._tiers = limits, tiers or TiersSettings()
        self.of_tier = dict.fromkeys(Tier, 0)
        """Requests in flight of each class of service, once it is known."""

        self.in_flight = 0
        """Requests whose bodies are there and whose answers are not out yet."""

        self.body_bytes = 0
        """Of all bodies that are being read or served."""

        self.draining = False
        self._of_peer: Counter[Peer] = Counter()
        self._empty = asyncio.Event()
        self._empty.set()

    @contextmanager
    def visit(self, peer: Peer | None = None) -> Iterator[Visit]:
        """One request from its head to the end of its answer; `peer` is None where no limit of one holds.

        Raises Draining, TooManyRequests or TooManyRequestsFromPeer.
        """
        # A body that would be refused is not waited for.
        self._check(peer)
        visit = Visit(self, peer)
        try:
            yield visit
        finally:
            self._leave(visit)

    async def drain(self) -> None:
        """Admit nobody any more, and wait until all have left."""
        self.draining = True
        await self._empty.wait()

    def _check(self, peer: Peer | None) -> None:
        if self.draining:
            raise Draining("the service is shutting down and takes no new requests: send it to another one")
        if self.in_flight >= self._limits.concurrent_requests:
            raise TooManyRequests(
                f"{self.in_flight} requests are in flight, and {self._limits.concurrent_requests} is the limit: "
                "try again later"
            )
        most = self._limits.requests_per_peer
        if peer is not None and most is not None and self._of_peer[peer] >= most:
            raise TooManyRequestsFromPeer(
                f"{self._of_peer[peer]} requests from {peer} are in flight, and {most} is the limit: wait for some of "
                "them to end"
            )

    def _receive(self, size: int) -> None:
        limit = self._limits.body_bytes_in_flight
        if self.body_bytes + size > limit:
            raise TooManyBytes(
                f"the bodies in flight hold {self.body_bytes} of {limit} bytes and leave no room for {size} more: "
                "try again later"
            )
        self.body_bytes += size

    def _enter(self, peer: Peer | None) -> None:
        self._check(peer)
        self.in_flight += 1
        if peer is not None:
            self._of_peer[peer] += 1
        self._empty.clear()

    def _join(self, tier: Tier) -> None:
        share = self._tiers.of(tier.value).share
        most = max(1, int(share * self._limits.concurrent_requests))
        # What all classes may take together was looked at when the request entered.
        if share < 1 and self.of_tier[tier] >= most:
            raise TooManyRequests(
                f"{self.of_tier[tier]} requests of the class {tier.value} are in flight, and {most} is the limit: try "
                "again later"
            )
        self.of_tier[tier] += 1

    def _leave(self, visit: Visit) -> None:
        self.body_bytes -= visit.body_bytes
        if visit.tier is not None:
            self.of_tier[visit.tier] -= 1
        if visit.entered:
            self.in_flight -= 1
            if visit.peer is not None:
                self._of_peer[visit.peer] -= 1
                if not self._of_peer[visit.peer]:
                    del self._of_peer[visit.peer]
            if not self.in_flight:
                self._empty.set()


class Visit:
    """What one request holds."""

    def __init__(self, admission: Admission, peer: Peer | None) -> None:
        self._admission, self.peer = admission, peer
        self.body_bytes = 0
        self.entered = False
        self.tier: Tier | None = None

    def receive(self, size: int) -> None:
        """Hold more bytes of the body. Raises TooManyBytes."""
        self._admission._receive(size)
        self.body_bytes += size

    def enter(self) -> None:
        """Take a place: the body is there. Once a visit. Raises as `Admission.visit` does."""
        assert not self.entered, "a request has one place"
        self._admission._enter(self.peer)
        self.entered = True

    def join(self, tier: Tier) -> None:
        """Count as one of a class. Once a visit. Raises TooManyRequests where the class has its share."""
        assert self.tier is None, "a request is of one class"
        self._admission._join(tier)
        self.tier = tier
