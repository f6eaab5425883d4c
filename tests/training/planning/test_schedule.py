"""The simulated 1F1B step: legal whatever the times, and equal to the textbook's formula where that holds."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.planning.memory import in_flight
from training.planning.schedule import Kind, Pass, StageTimes, estimate_seconds, gantt, order, simulate

seconds = st.floats(0.01, 10.0)
stage_times = st.lists(
    st.builds(
        StageTimes,
        forward_s=seconds,
        backward_s=seconds,
        to_next_s=st.floats(0, 1),
        to_previous_s=st.floats(0, 1),
    ),
    min_size=1,
    max_size=6,
)
counts = st.integers(1, 9)


@settings(deadline=None)
@given(stages=st.integers(1, 8), count=counts, forward=seconds, backward=seconds)
def test_equal_stages_make_the_bubble_of_the_formula(stages: int, count: int, forward: float, backward: float) -> None:
    times = [StageTimes(forward_s=forward, backward_s=backward)] * stages
    timeline = simulate(times, count)
    assert timeline.seconds == pytest.approx((count + stages - 1) * (forward + backward))
    assert timeline.bubble == pytest.approx((stages - 1) / (count + stages - 1))
    assert estimate_seconds(times, count) == pytest.approx(timeline.seconds)


@settings(deadline=None)
@given(times=stage_times, count=counts)
def test_every_pass_happens_once_after_what_it_reads(times: list[StageTimes], count: int) -> None:
    timeline = simulate(times, count)
    found = {(each.stage, each.kind, each.micro_batch): each for each in timeline.passes}
    assert len(found) == len(timeline.passes) == 2 * len(times) * count
    last = len(times) - 1
    for (stage, kind, number), each in found.items():
        if kind is Kind.FORWARD and stage > 0:
            before = found[stage - 1, kind, number]
            assert each.begin_s >= before.end_s + times[stage - 1].to_next_s
        if kind is Kind.BACKWARD:
            before = found[stage, Kind.FORWARD, number] if stage == last else found[stage + 1, kind, number]
            delay_s = 0.0 if stage == last else times[stage + 1].to_previous_s
            assert each.begin_s >= before.end_s + delay_s


@settings(deadline=None)
@given(times=stage_times, count=counts)
def test_a_stage_does_one_thing_at_a_time_and_holds_few_micro_batches(times: list[StageTimes], count: int) -> None:
    timeline = simulate(times, count)
    for stage in range(len(times)):
        own: list[Pass] = sorted((p for p in timeline.passes if p.stage == stage), key=lambda p: p.begin_s)
        assert all(a.end_s <= b.begin_s + 1e-9 for a, b in pairwise(own))
        held, most = 0, 0
        for each in own:
            held += 1 if each.kind is Kind.FORWARD else -1
            most = max(most, held)
        assert most == in_flight(stage, len(times), count)
    assert timeline.busy_s == pytest.approx([count * (each.forward_s + each.backward_s) for each in times])


@settings(deadline=None)
@given(times=stage_times, count=counts, factor=st.floats(1.0, 3.0), data=st.data())
def test_a_slower_stage_or_link_never_makes_a_shorter_step(
    times: list[StageTimes], count: int, factor: float, data: st.DataObject
) -> None:
    slowed = data.draw(st.integers(0, len(times) - 1))
    slower = list(times)
    each = times[slowed]
    slower[slowed] = StageTimes(
        forward_s=each.forward_s * factor,
        backward_s=each.backward_s,
        to_next_s=each.to_next_s * factor,
        to_previous_s=each.to_previous_s * factor,
    )
    assert simulate(slower, count).seconds >= simulate(times, count).seconds - 1e-9


@settings(deadline=None)
@given(times=stage_times, count=counts)
def test_a_step_is_never_shorter_than_its_busiest_stage(times: list[StageTimes], count: int) -> None:
    timeline = simulate(times, count)
    assert timeline.seconds >= max(timeline.busy_s) - 1e-9
    assert 0 <= timeline.bubble < 1


def test_the_order_is_that_of_the_paper() -> None:
    told = ["".join(f"{kind}{number} " for kind, number in order(stage, 3, 4)).strip() for stage in range(3)]
    assert told == [
        "F0 F1 F2 B0 F3 B1 B2 B3",
        "F0 F1 B0 F2 B1 F3 B2 B3",
        "F0 B0 F1 B1 F2 B2 F3 B3",
    ]


def test_the_chart_shows_what_was_simulated() -> None:
    times = [StageTimes(forward_s=1, backward_s=2)] * 2
    assert gantt(simulate(times, 2), width=9) == ["01..aa.bb", ".0aa1bb.."]
    assert gantt(simulate(times, 1), width=8, tail_s=[2, 1]) == ["0...aa==", ".0aa=..."]


@settings(deadline=None, max_examples=30)
@given(times=stage_times, count=st.integers(1, 5), tail=st.floats(0, 3))
def test_chart_rows_have_one_width_and_hold_each_stages_share(times: list[StageTimes], count: int, tail: float) -> None:
    timeline = simulate(times, count)
    width = 400
    rows = gantt(timeline, width=width, tail_s=[tail] * len(times))
    assert {len(row) for row in rows} == {width}
    total_s = timeline.seconds + tail
    for row, busy_s, stage in zip(rows, timeline.busy_s, range(len(times)), strict=True):
        shown = sum(mark not in ".=" for mark in row)
        assert shown == pytest.approx(busy_s / total_s * width, abs=2 * count + 1), stage
