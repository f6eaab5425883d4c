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

from .protocol import Task

Owner = TypeVar("Owner")


class Side(enum.IntEnum):
    """The end of the pool that sequences are laid against."""

    FRONT = 0
    BACK = 1


SIDES = {Task.GENERATION: Side.FRONT, Task.SUMMARY: Side.BACK}
"""The side of each task's decoder; questions need none, for their answers are read off the encoder."""


@dataclass(slots=True, eq=False)
class SequenceSlot(Generic[Owner]):
    """Where one sequence is in the pool: an answer that is written, or one beam of it."""

    owner: Owner
    side: Side
    slot: int
    """Changes when the sequence moves."""


@dataclass(frozen=True, slots=True)
class Move:
    """Contents to copy from one slot to another."""

    source: int
    target: int
    side: Side


class SlotMap(Generic[Owner]):
    """The slots of all sequences."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self._sequences: dict[Side, list[SequenceSlot[Owner]]] = {Side.FRONT: [], Side.BACK: []}

    @property
    def used(self) -> int:
        """Occupied slots."""
        return sum(len(sequences) for sequences in self._sequences.values())

    @property
    def free(self) -> int:
        """Slots that either side may take."""
        return self.slots - self.used

    def bounds(self, side: Side) -> slice:
        """The slots of one side."""
        count = len(self._sequences[side])
        return slice(0, count) if side is Side.FRONT else slice(self.slots - count, self.slots)

    def sequences(self, side: Side) -> list[SequenceSlot[Owner]]:
        """The sequences of one side, in the order of their slots."""
        return self._sequences[side][:: 1 if side is Side.FRONT else -1]

    def acquire(self, side: Side, owner: Owner) -> SequenceSlot[Owner]:
        """A new sequence. The caller has made sure that a slot is free."""
        assert self.free, "no free slot"
        sequence = SequenceSlot(owner, side, self._slot(side, len(self._sequences[side])))
        self._sequences[side].append(sequence)
        return sequence

    def release(self, sequences: Iterable[SequenceSlot[Owner]]) -> list[Move]:
        """Remove sequences. The moves that close the holes are to be made in order, before anything else."""
        moves = []
        # From the inside out, so that the sequence which fills a hole is always one that stays.
        for sequence in sorted(sequences, key=self._depth, reverse=True):
            row, index = self._sequences[sequence.side], self._depth(sequence)
            assert row[index] is sequence, "a sequence is released once"
            last = row.pop()
            if last is not sequence:
                moves.append(Move(source=last.slot, target=sequence.slot, side=sequence.side))
                row[index], last.slot = last, sequence.slot
        return moves

    def _depth(self, sequence: SequenceSlot[Owner]) -> int:
        return self._slot(sequence.side, sequence.slot)

    def _slot(self, side: Side, depth: int) -> int:
        """Slot at a depth from its side's end, and the reverse: each is its own inverse."""
        return depth if side is Side.FRONT else self.slots - 1 - depth
