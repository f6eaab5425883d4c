"""The scheduler alone: whatever comes, goes and is cancelled, everyone has a turn, in order, as they were sent."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deploy.triton.scheduler import Scheduler
from deploy.triton.slots import SequenceSlot, Side

SLOTS, TOKENS = 6, 50


@dataclass(eq=False)
class Plain:
    """A row that is nothing but its numbers."""

    row_id: int
    cost: int
    slots_needed: int
    batch: int = 0
    sequences: list[SequenceSlot] = field(default_factory=list)


def scheduler_of(*batches: list[Plain]) -> Scheduler[Plain]:
    scheduler: Scheduler[Plain] = Scheduler(slots=SLOTS, prefill_tokens=TOKENS)
    for rows in batches:
        scheduler.add(rows)
    return scheduler


def ids(groups: list[list[Plain]]) -> list[list[int]]:
    return [[row.row_id for row in group] for group in groups]


class SchedulerMachine(RuleBasedStateMachine):
    """Batches come, are started, end and are cancelled in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = scheduler_of()
        self.waiting: list[Plain] = []
        self.running: list[Plain] = []
        self.marked: set[int] = set()
        self.count = self.batches = 0

    @rule(shapes=st.lists(st.tuples(st.integers(1, 2 * TOKENS), st.integers(0, SLOTS)), min_size=1, max_size=9))
    def add(self, shapes: list[tuple[int, int]]) -> None:
        self.batches += 1
        rows = [Plain(self.count + index, *shape, self.batches) for index, shape in enumerate(shapes)]
        self.count += len(rows)
        self.scheduler.add(rows)
        self.waiting += rows

    @rule(side=st.sampled_from(Side))
    def step(self, side: Side) -> None:
        groups = self.scheduler.next_groups()
        started = [row for group in groups for row in group]
        assert started == self.waiting[: len(started)], "in order, none skipped"
        free = SLOTS - sum(len(row.sequences) for row in self.running)
        assert sum(row.slots_needed for row in started) <= free
        padded = [len(group) * max(row.cost for row in group) for group in groups]
        assert all(len({row.batch for row in group}) == 1 for group in groups)
        assert len({group[0].batch for group in groups}) == len(groups), "a batch's rows of one step are one group"
        assert sum(padded) <= TOKENS or ([len(group) for group in groups] == [1] and padded[0] > TOKENS)
        if self.waiting and not groups:
            assert self.waiting[0].slots_needed > free, "only slots may keep the first row waiting"
        for row in started:
            self.scheduler.assign(row, side)
            assert len({each.slot for each in row.sequences}) == row.slots_needed
        self.waiting, self.running = self.waiting[len(started) :], [*self.running, *started]

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        indices = data.draw(st.sets(st.integers(0, len(self.running) - 1), min_size=1))
        gone = [row for index, row in enumerate(self.running) if index in indices]
        self.running = [row for row in self.running if row not in gone]
        self.scheduler.finish(gone)
        assert not any(row.sequences for row in gone)

    @rule(row_ids=st.lists(st.integers(0, 60)), everything=st.booleans())
    def cancel(self, row_ids: list[int], everything: bool) -> None:
        flying = {row.row_id for row in (*self.waiting, *self.running)}
        if everything and len(row_ids) > 6:
            self.scheduler.cancel_all()
            self.marked |= flying
        self.scheduler.cancel(row_ids)
        self.marked |= flying & set(row_ids)

    @rule()
    def take_cancelled(self) -> None:
        gone = self.scheduler.take_cancelled()
        flying = {row.row_id for row in (*self.waiting, *self.running)}
        assert {row.row_id for row in gone} == self.marked & flying
        self.scheduler.finish(gone)
        self.waiting = [row for row in self.waiting if row.row_id not in self.marked]
        self.running = [row for row in self.running if row.row_id not in self.marked]
        self.marked.clear()

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.scheduler.waiting == len(self.waiting)
        assert self.scheduler.in_flight == len(self.waiting) + len(self.running)
        assert self.scheduler.slots_used == sum(len(row.sequences) for row in self.running)
        decoded = []
        for side in Side:
            rows, bounds = self.scheduler.decoding(side)
            slots = sorted(each.slot for row in rows for each in row.sequences)
            assert slots == list(range(bounds.start, bounds.stop))
            decoded += rows
        assert {row.row_id for row in decoded} == {row.row_id for row in self.running if row.slots_needed}
        assert len(decoded) == len({row.row_id for row in decoded})

    def teardown(self) -> None:
        """Whatever is left gets its turn."""
        for _ in range(2 * self.count + 1):
            self.scheduler.finish([*self.running])
            self.running = []
            self.step(Side.FRONT)
        assert not self.waiting


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=80, stateful_step_count=30, deadline=None)


def test_a_batch_is_one_group_padded_to_its_longest() -> None:
    scheduler = scheduler_of([Plain(0, 3, 1), Plain(1, 16, 1), Plain(2, 1, 1)])
    assert ids(scheduler.next_groups()) == [[0, 1, 2]]
    assert scheduler.next_groups() == []


def test_batches_share_a_step_s_tokens_but_no_group() -> None:
    scheduler = scheduler_of([Plain(0, 20, 1)], [Plain(1, 15, 1), Plain(2, 15, 1)], [Plain(3, 1, 1)])
    assert ids(scheduler.next_groups()) == [[0], [1, 2]]
    assert ids(scheduler.next_groups()) == [[3]]


def test_only_the_first_batch_of_a_step_is_cut_for_its_tokens() -> None:
    scheduler = scheduler_of([Plain(0, 10, 1)], [Plain(row_id, 20, 1) for row_id in range(1, 5)])
    assert ids(scheduler.next_groups()) == [[0]]
    assert ids(scheduler.next_groups()) == [[1, 2]]
    assert ids(scheduler.next_groups()) == [[3, 4]]


def test_rows_start_as_slots_free_whichever_place_their_batch_has() -> None:
    scheduler = scheduler_of([Plain(0, 1, 4)], [Plain(row_id, 1, 1) for row_id in range(1, 5)])
    groups = scheduler.next_groups()
    assert ids(groups) == [[0], [1, 2]]
    for row in (row for group in groups for row in group):
        scheduler.assign(row, Side.FRONT)
    assert scheduler.next_groups() == []
    scheduler.finish([groups[1][0]])
    assert ids(scheduler.next_groups()) == [[3]]


def test_an_id_in_flight_keeps_its_whole_batch_out() -> None:
    scheduler = scheduler_of([Plain(7, 1, 1)])
    with pytest.raises(ValueError, match="row 7 is in flight already"):
        scheduler.add([Plain(8, 1, 1), Plain(7, 1, 1)])
    assert (scheduler.in_flight, scheduler.waiting) == (1, 1)


def test_abandoning_hands_back_everything_in_flight() -> None:
    scheduler = scheduler_of([Plain(0, 1, 2)], [Plain(1, TOKENS, 1)])
    (group,) = scheduler.next_groups()
    scheduler.assign(group[0], Side.BACK)
    scheduler.cancel([1])
    assert {row.row_id for row in scheduler.abandon()} == {0, 1}
    assert (scheduler.in_flight, scheduler.waiting, scheduler.slots_used) == (0, 0, 0)
    assert scheduler.take_cancelled() == []
    assert not group[0].sequences
