"""The pool: no sequence is lost, doubled or mixed up, whatever enters and leaves."""

from __future__ import annotations

import itertools
import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from deploy.triton.cache import CachePool, CacheShape
from deploy.triton.decoder import footprint
from deploy.triton.protocol import Source
from deploy.triton.slots import SequenceSlot, Side, SlotMap

SHAPE = CacheShape(slots=7, layers=2, heads=2, head_width=4, max_source=6, max_target=5, vocabulary=8, warm_positions=2)
FOOTPRINTS = {Side.FRONT: footprint(2, copies=False), Side.BACK: footprint(1, copies=True)}


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, grow, branch and go; every sequence's cache must hold what was written for it."""

    def __init__(self) -> None:
        super().__init__()
        self.slots: SlotMap[int] = SlotMap(SHAPE.slots)
        self.pool = CachePool(SHAPE)
        self.sequences: dict[int, SequenceSlot[int]] = {}
        self.history: dict[int, list[float]] = {}
        """What each sequence's self-attention holds, one number a position."""

        self.source: dict[int, int] = {}
        self.count = 0

    @precondition(lambda self: self.slots.free)
    @rule(side=st.sampled_from(Side), length=st.integers(1, SHAPE.max_source))
    def enter(self, side: Side, length: int) -> None:
        self.count += 1
        sequence = self.slots.acquire(side, self.count)
        plan = FOOTPRINTS[side]
        cross = [np.full((2, length + 1, 4), self.count + index / 10, np.float32) for index in range(len(plan.cross))]
        self.pool.write_source(sequence.slot, plan, cross, Source(np.full(length, self.count)), first_token=1)
        self.sequences[self.count], self.history[self.count], self.source[self.count] = sequence, [], length

    @rule(side=st.sampled_from(Side))
    def step(self, side: Side) -> None:
        sequences = self.slots.sequences(side)
        if any(len(self.history[sequence.owner]) == SHAPE.max_target for sequence in sequences):
            return
        for sequence in sequences:
            value = float(self.count * 100 + sequence.owner)
            for name in FOOTPRINTS[side].own:
                self.pool.buffers[name][sequence.slot, :, len(self.history[sequence.owner])] = value
            self.history[sequence.owner].append(value)
        self.count += 1
        self.pool.grow(self.slots.bounds(side))

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        gone = data.draw(st.lists(st.sampled_from(sorted(self.sequences)), unique=True, min_size=1))
        for move in self.slots.release(self.sequences.pop(owner) for owner in gone):
            self.pool.move(move, FOOTPRINTS[move.side])

    @rule(data=st.data(), side=st.sampled_from(Side))
    def branch(self, data: st.DataObject, side: Side) -> None:
        sequences = self.slots.sequences(side)
        ages = {len(self.history[sequence.owner]) for sequence in sequences}
        if not sequences or len(ages) > 1:
            return
        parents = data.draw(
            st.lists(st.integers(0, len(sequences) - 1), min_size=len(sequences), max_size=len(sequences)).map(np.array)
        )
        self.pool.reorder(np.array([sequence.slot for sequence in sequences]), parents, FOOTPRINTS[side])
        histories = [list(self.history[sequences[parent].owner]) for parent in parents]
        for sequence, history in zip(sequences, histories, strict=True):
            self.history[sequence.owner] = history

    @precondition(lambda self: not self.sequences)
    @rule(slices=st.integers(0, 100))
    def rest(self, slices: int) -> None:
        """Memory is given back, all of it or until something comes."""
        for _ in itertools.islice(self.pool.trim(), slices):
            pass

    @invariant()
    def sequences_lie_side_by_side(self) -> None:
        front, back = (self.slots.sequences(side) for side in Side)
        assert [sequence.slot for sequence in front] == list(range(len(front)))
        assert [sequence.slot for sequence in back] == list(range(SHAPE.slots - len(back), SHAPE.slots))
        assert sorted(sequence.owner for sequence in (*front, *back)) == sorted(self.sequences)
        assert self.slots.used == len(self.sequences)
        assert self.slots.free == SHAPE.slots - len(self.sequences)

    @invariant()
    def every_sequence_holds_its_own(self) -> None:
        for owner, sequence in self.sequences.items():
            plan, length = FOOTPRINTS[sequence.side], self.source[owner]
            assert self.pool.target_lengths[sequence.slot] == len(self.history[owner])
            assert self.pool.source_lengths[sequence.slot] == length
            assert (self.pool.source_ids[sequence.slot, :length] == owner).all()
            for name in plan.own:
                held = self.pool.buffers[name][sequence.slot, :, : len(self.history[owner])]
                assert (held == np.array(self.history[owner], np.float32)[None, :, None]).all()
            for index, name in enumerate(plan.cross):
                assert (self.pool.buffers[name][sequence.slot, :, :length] == np.float32(owner + index / 10)).all()


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_sequence_is_released_once() -> None:
    slots: SlotMap[str] = SlotMap(2)
    sequence = slots.acquire(Side.FRONT, "a")
    slots.acquire(Side.FRONT, "b")
    slots.release([sequence])
    with pytest.raises(AssertionError):
        slots.release([sequence])


def test_cold_memory_is_given_back() -> None:
    shape = CacheShape(
        slots=4, layers=2, heads=2, head_width=64, max_source=2048, max_target=512, vocabulary=8, warm_positions=64
    )
    pool, plan = CachePool(shape), footprint(2, copies=False)
    idle = resident_bytes()
    source = [np.ones((2, 2048, 64), np.float32)] * len(plan.cross)
    for slot in range(shape.slots):
        pool.write_source(slot, plan, source, Source(np.full(2048, 9)), first_token=1)
    full = resident_bytes()
    for _ in pool.trim():
        pass
    written = shape.slots * source[0].nbytes * len(plan.cross)
    assert full - idle > 0.9 * written
    assert full - resident_bytes() > 0.9 * written
    assert (pool.buffers["cross_key_0"][:, :, :64] == 1).all()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
