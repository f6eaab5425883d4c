"""Who runs next: which rows wait, which are encoded together, which slots they hold, and when they leave.

    add ─▶ waiting batches ── next_groups ─▶ encoded ── assign ─▶ in slots ── finish ─▶ gone
               (in order)                                                     ▲
    cancel ─────────────────── take_cancelled ────────────────────────────────┘

Nothing here computes, waits or knows what a row holds: it counts rows, tokens and slots. Whoever calls it from several
threads locks it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Generic, Protocol, TypeVar

from .slots import Move, SequenceSlot, Side, SlotMap


class Schedulable(Protocol):
    """What the scheduler needs of a row."""

    sequences: list[SequenceSlot]
    """Its slots, in the order of its beams; the scheduler's to change."""

    @property
    def row_id(self) -> int:
        """Unique among the rows in flight."""

    @property
    def cost(self) -> int:
        """Positions that the encoder computes for it."""

    @property
    def slots_needed(self) -> int:
        """Slots it takes while it is decoded."""


SomeRow = TypeVar("SomeRow", bound=Schedulable)


class Scheduler(Generic[SomeRow]):
    """The rows in flight."""

    def __init__(self, *, slots: int, prefill_tokens: int) -> None:
        """`prefill_tokens`: positions (padding included) to encode before the next rows are looked at."""
        self._prefill_tokens = prefill_tokens
        self._slots: SlotMap[SomeRow] = SlotMap(slots)
        self._rows: dict[int, SomeRow] = {}
        self._waiting: deque[deque[SomeRow]] = deque()
        self._cancelled: set[int] = set()

    @property
    def in_flight(self) -> int:
        """Rows that have not finished."""
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Rows that have not been encoded."""
        return sum(len(rows) for rows in self._waiting)

    @property
    def slots_used(self) -> int:
        """Occupied slots."""
        return self._slots.used

    @property
    def has_cancelled(self) -> bool:
        """Whether rows were marked that have not been taken."""
        return bool(self._cancelled)

    def add(self, rows: Sequence[SomeRow]) -> None:
        """Queue a batch. Raises ValueError where one of its ids is in flight; then none is queued."""
        taken = [row.row_id for row in rows if row.row_id in self._rows]
        if taken:
            raise ValueError(f"row {taken[0]} is in flight already: give every row an id of its own")
        self._rows.update((row.row_id, row) for row in rows)
        self._waiting.append(deque(rows))

    def cancel(self, row_ids: Iterable[int]) -> None:
        """Mark rows; ids that are not in flight are ignored."""
        self._cancelled.update(row_id for row_id in row_ids if row_id in self._rows)

    def cancel_all(self) -> None:
        """Mark whatever is in flight."""
        self._cancelled.update(self._rows)

    def take_cancelled(self) -> list[SomeRow]:
        """The rows that were marked since the last call, waiting no more; they are to be finished."""
        gone = [self._rows[row_id] for row_id in self._cancelled if row_id in self._rows]
        if any(not row.sequences for row in gone):
            kept = (deque(row for row in rows if row.row_id not in self._cancelled) for rows in self._waiting)
            self._waiting = deque(rows for rows in kept if rows)
        self._cancelled.clear()
        return gone

    def next_groups(self) -> list[list[SomeRow]]:
        """Rows to encode next, each group by itself, in the order in which they came. Asked once they all are encoded.

        A group is the head of one batch, as much of it as slots and tokens last for. The first row that does not fit
        holds up those behind it, so a search of many beams is never overtaken for ever by rows that need one slot.
        """
        groups: list[list[SomeRow]] = []
        slots, tokens = self._slots.free, self._prefill_tokens
        while self._waiting:
            batch = self._waiting[0]
            group = _head(batch, slots, tokens, is_first=not groups)
            if not group:
                break
            groups.append(group)
            for row in group:
                batch.popleft()
                slots -= row.slots_needed
            tokens -= len(group) * max(row.cost for row in group)
            if batch:
                break
            self._waiting.popleft()
        return groups

    def assign(self, row: SomeRow, side: Side) -> None:
        """Give a row of one of the last groups its slots."""
        row.sequences = [self._slots.acquire(side, row) for _ in range(row.slots_needed)]

    def decoding(self, side: Side) -> tuple[list[SomeRow], slice]:
        """The rows of one side, in the order of their first slots, and the slots that they fill."""
        return list(dict.fromkeys(each.owner for each in self._slots.sequences(side))), self._slots.bounds(side)

    def finish(self, rows: Iterable[SomeRow]) -> list[Move]:
        """Forget rows. Returns the moves that close the holes in the pool, to be made in order before the next step."""
        moves = self._slots.release(each for row in rows for each in row.sequences)
        for row in rows:
            row.sequences = []
            del self._rows[row.row_id]
        return moves

    def abandon(self) -> list[SomeRow]:
        """Forget everything, whatever state it is in. Returns what was in flight; what the pool holds of it is lost."""
        rows = list(self._rows.values())
        for row in rows:
            row.sequences = []
        self._slots = SlotMap(self._slots.slots)
        self._rows.clear()
        self._waiting.clear()
        self._cancelled.clear()
        return rows


def _head(batch: Iterable[SomeRow], slots: int, tokens: int, *, is_first: bool) -> list[SomeRow]:
    """The first rows of a batch that are encoded together now; none where they have to wait.

    Args:
        batch: the rows that wait.
        slots: free ones.
        tokens: positions that may still be encoded before the next decode step.
        is_first: nothing else is encoded before that step. Only then is a batch with too many tokens cut, and a row
            that has too many by itself goes alone; else it waits for a step in which it can have them all.
    """
    group: list[SomeRow] = []
    longest = 0
    for row in batch:
        slots -= row.slots_needed
        if slots < 0:
            break
        longest = max(longest, row.cost)
        if longest * (len(group) + 1) > tokens and (group or not is_first):
            return group if is_first else []
        group.append(row)
    return group
