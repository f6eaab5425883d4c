"""An order that is fair between flows: who asks for much waits behind who asks for little, and neither for ever.

Start-time fair queueing (Goyal, Vin, Cheng: "Start-time Fair Queueing", SIGCOMM 1996, section 2): every item is tagged
on arrival with the virtual time at which its turn would begin if all flows shared the server equally, and items stand
in the order of their tags.

    start(item)  = max(virtual time, finish of its flow's item before), the latter alone while that flow waits
    finish(item) = start(item) + cost

The first item of a new flow stands before those of flows that have had turns (as in FQ-CoDel, RFC 8290, section 4.2).

The virtual time is that of the flow which is furthest behind, and grows with every turn by a small share of its cost:
flows that come one after the other for ever would hold it otherwise, and so whatever waits is first one day.

    book A   a1 a2 a3 a4 …                a1 b1 │ a2 b2 a3 b3 …
    book B   b1 b2 b3 b4 …    order:            └ where the next flow's first item stands, however much A and B want
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)

LEAST_SHARE = 1 / 64
"""Share of the turns that is left to a flow which has had its own, while new flows come that have not. Beside so many
flows a new one still waits for no more than one turn of each."""

HEAD_START = 512
"""Virtual time by which a new flow's first item is early: about the cost of a window."""

FLOWS_KEPT = 64
"""Flows that are remembered before it is looked which of them can be forgotten."""


@dataclass(slots=True)
class Flow:
    """What the order knows of one flow."""

    finish: float
    """Virtual time at which the last of its items ends."""

    waiting: int = 0


class FairOrder(Generic[Item]):
    """Items in the order of their turns. Items of one flow, and flows of one item each, keep that of their arrival.

    Adding and removing one of n is a search in log n and a move of pointers, iterating costs nothing beside the loop.
    """

    def __init__(self) -> None:
        self._virtual = 0.0
        self._numbers = itertools.count()
        self._flows: dict[Hashable, Flow] = {}
        self._look_at = FLOWS_KEPT
        """Number of flows at which it is looked for those that can be forgotten."""

        self._keys: dict[Item, tuple[float, int, Hashable]] = {}
        self._tags: list[tuple[float, int]] = []
        """Of `_items`, rising: start, and number of arrival."""

        self._items: list[Item] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items)

    def add(self, item: Item, flow: Hashable, cost: int) -> float:
        """Put an item where its turn is. The cost of what its flow asked for before it and has not had yet, about."""
        known = self._flows.get(flow)
        if known is None:
            known = self._flows[flow] = Flow(self._virtual)
            early = HEAD_START
        else:
            early = 0
        # A flow that waits has lost nothing: it goes on where it stands, even where the virtual time is past that.
        start = known.finish if known.waiting else max(self._virtual, known.finish)
        known.finish = start + cost
        known.waiting += 1
        tag = (start - early, next(self._numbers))
        self._keys[item] = (*tag, flow)
        index = bisect_left(self._tags, tag)
        self._tags.insert(index, tag)
        self._items.insert(index, item)
        return max(0.0, start - self._virtual)

    def take(self, item: Item, cost: int) -> None:
        """An item gets its turn, wherever it stands. Raises KeyError where it does not wait."""
        furthest_behind = self._tags[0][0] if self._tags else self._virtual
        self.remove(item)
        self._virtual = max(self._virtual, furthest_behind) + cost * LEAST_SHARE

    def remove(self, item: Item) -> None:
        """An item leaves without its turn. Raises KeyError where it does not wait."""
        start, number, name = self._keys.pop(item)
        index = bisect_left(self._tags, (start, number))
        del self._tags[index], self._items[index]
        self._flows[name].waiting -= 1
        if not self._items or len(self._flows) > self._look_at:
            self._forget_flows()

    def _forget_flows(self) -> None:
        """Forget flows that have nothing here and owe nothing: all of them once nobody waits whom they could owe."""
        if not self._items:
            self._flows.clear()
        else:
            owing = {name: flow for name, flow in self._flows.items() if flow.waiting or flow.finish > self._virtual}
            self._flows = owing
        self._look_at = 2 * len(self._flows) + FLOWS_KEPT
