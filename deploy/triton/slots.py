"""Which sequence lives in which slot of the cache pool.

    slot   0   1   2   3   4   5   6   7
           A   B   C   ·   ·   ·   E   D
           front ────▶             ◀──── back

Each decoder owns one side, and its sequences always lie side by side, so that its step reads one contiguous piece of
the pool. A sequence that ends leaves a hole; the side's innermost sequence moves into it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Owner = TypeVar("Owner")


class Side(enum.IntEnum):
    """The end of the pool that sequences are laid against."""

    FRONT = 0
    BACK = 1


@dataclass(slots=True, eq=False)
class Lane(Generic[Owner]):
    """One sequence in the pool."""

    owner: Owner
    side: Side
    slot: int
    """Changes when the lane moves."""


@dataclass(frozen=True, slots=True)
class Move:
    """Contents to copy from one slot to another."""

    source: int
    target: int
    side: Side


class SlotMap(Generic[Owner]):
    """The places of all lanes."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._lanes: dict[Side, list[Lane[Owner]]] = {Side.FRONT: [], Side.BACK: []}

    @property
    def used(self) -> int:
        """Occupied slots."""
        return sum(len(lanes) for lanes in self._lanes.values())

    @property
    def free(self) -> int:
        """Slots that either side may take."""
        return self.slots - self.used

    def bounds(self, side: Side) -> slice:
        """The slots of one side."""
        count = len(self._lanes[side])
        return slice(0, count) if side is Side.FRONT else slice(self.slots - count, self.slots)

    def lanes(self, side: Side) -> list[Lane[Owner]]:
        """The lanes of one side, in the order of their slots."""
        return self._lanes[side][:: 1 if side is Side.FRONT else -1]

    def acquire(self, side: Side, owner: Owner) -> Lane[Owner]:
        """A new lane. The caller has made sure that a slot is free."""
        assert self.free, "no free slot"
        lane = Lane(owner, side, self._slot(side, len(self._lanes[side])))
        self._lanes[side].append(lane)
        return lane

    def release(self, lanes: Iterable[Lane[Owner]]) -> list[Move]:
        """Remove lanes. The moves that close the holes are to be made in order, before anything else."""
        moves = []
        # From the inside out, so that the lane which fills a hole is always one that stays.
        for lane in sorted(lanes, key=self._depth, reverse=True):
            row, index = self._lanes[lane.side], self._depth(lane)
            assert row[index] is lane, "a lane is released once"
            last = row.pop()
            if last is not lane:
                moves.append(Move(source=last.slot, target=lane.slot, side=lane.side))
                row[index], last.slot = last, lane.slot
        return moves

    def _depth(self, lane: Lane[Owner]) -> int:
        return self._slot(lane.side, lane.slot)

    def _slot(self, side: Side, depth: int) -> int:
        """Slot at a depth from its side's end, and the reverse: each is its own inverse."""
        return depth if side is Side.FRONT else self.slots - 1 - depth
