"""A step of a 1F1B pipeline, simulated: who computes what when, and who waits.

    stage 0   F0 F1 F2 B0 F3 B1 …        forward passes of as many micro-batches as there are stages behind,
    stage 1      F0 F1 B0 F2 B1 …        then one of each in turn, then the backward passes that are left
    stage 2         F0 B0 F1 B1 …

(Narayanan et al. 2021, section 2.2.) Every pass starts when its stage is free and what it reads has come; nothing here
is drawn from a formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """A pass of one micro-batch through one stage."""

    FORWARD = "F"
    BACKWARD = "B"


@dataclass(frozen=True, slots=True)
class Pass:
    """What a stage did, and when; seconds from the begin of the step."""

    stage: int
    kind: Kind
    micro_batch: int
    begin_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StageTimes:
    """Seconds of one micro-batch on one stage."""

    forward_s: float
    backward_s: float
    to_next_s: float = 0.0
    """Until its states are with the next stage."""
    to_previous_s: float = 0.0
    """Until its gradients are with the stage before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timeline:
    """A step up to the end of its last pass."""

    passes: tuple[Pass, ...]
    stages: int

    @property
    def seconds(self) -> float:
        """Until the last stage is done."""
        return max(each.end_s for each in self.passes)

    @property
    def ends_s(self) -> list[float]:
        """Of each stage's last pass."""
        return [max(each.end_s for each in self.passes if each.stage == stage) for stage in range(self.stages)]

    @property
    def busy_s(self) -> list[float]:
        """Of each stage."""
        busy = [0.0] * self.stages
        for each in self.passes:
            busy[each.stage] += each.end_s - each.begin_s
        return busy

    @property
    def bubble(self) -> float:
        """Part of all stages' time in which they wait, imbalance of stages included."""
        return 1 - sum(self.busy_s) / (self.stages * self.seconds)


def order(stage: int, stages: int, micro_batches: int) -> list[tuple[Kind, int]]:
    """Passes of one stage in the order in which it takes them."""
    ahead = min(micro_batches, stages - 1 - stage)
    passes = [(Kind.FORWARD, number) for number in range(ahead)]
    for number in range(ahead, micro_batches):
        passes += [(Kind.FORWARD, number), (Kind.BACKWARD, number - ahead)]
    return passes + [(Kind.BACKWARD, number) for number in range(micro_batches - ahead, micro_batches)]


def simulate(times: Sequence[StageTimes], micro_batches: int) -> Timeline:
    """Run a step: `times[i]` are stage i's."""
    stages = len(times)
    waiting = [order(stage, stages, micro_batches) for stage in range(stages)]
    place, free_s = [0] * stages, [0.0] * stages
    done_s: dict[tuple[int, Kind, int], float] = {}
    passes: list[Pass] = []
    going = True
    while going:
        going = False
        for stage in range(stages):
            while place[stage] < len(waiting[stage]):
                kind, number = waiting[stage][place[stage]]
                ready_s = _ready(times, done_s, stage, kind, number)
                if ready_s is None:
                    break
                begin_s = max(free_s[stage], ready_s)
                own = times[stage]
                end_s = begin_s + (own.forward_s if kind is Kind.FORWARD else own.backward_s)
                passes.append(Pass(stage, kind, number, begin_s, end_s))
                done_s[stage, kind, number] = free_s[stage] = end_s
                place[stage] += 1
                going = True
    assert all(at == len(own) for at, own in zip(place, waiting, strict=True)), "stages wait for each other"
    return Timeline(passes=tuple(passes), stages=stages)


def _ready(
    times: Sequence[StageTimes], done_s: dict[tuple[int, Kind, int], float], stage: int, kind: Kind, number: int
) -> float | None:
    """When a pass has what it reads; None while that is not known."""
    if kind is Kind.FORWARD:
        if stage == 0:
            return 0.0
        sent_s = done_s.get((stage - 1, kind, number))
        return None if sent_s is None else sent_s + times[stage - 1].to_next_s
    if stage == len(times) - 1:
        return done_s.get((stage, Kind.FORWARD, number))
    sent_s = done_s.get((stage + 1, kind, number))
    return None if sent_s is None else sent_s + times[stage + 1].to_previous_s


def estimate_seconds(times: Sequence[StageTimes], micro_batches: int) -> float:
    """About a step's length, to sort layouts by: one micro-batch through all stages, the rest at the slowest's pace.

    Exact for equal stages with free messages (Narayanan et al. 2021, section 2.2: (m + p - 1)(forward + backward)).
    """
    through_s = sum(own.forward_s + own.backward_s for own in times)
    return through_s + (micro_batches - 1) * max(own.forward_s + own.backward_s for own in times)


def gantt(timeline: Timeline, *, width: int = 100, tail_s: Sequence[float] = ()) -> list[str]:
    """The step as text, a line a stage: forward passes as their micro-batch's last digit, backward ones as letters a to
    z, waiting as dots; `tail_s` of each stage after its last pass (sums of gradients, optimizer) as `=`.
    """
    tails = list(tail_s) or [0.0] * timeline.stages
    last_s = timeline.ends_s
    total_s = max(end + tail for end, tail in zip(last_s, tails, strict=True))
    rows = [["."] * width for _ in range(timeline.stages)]

    def column(second: float) -> int:
        return min(width, round(second / total_s * width))

    for each in timeline.passes:
        number = each.micro_batch
        mark = str(number % 10) if each.kind is Kind.FORWARD else chr(ord("a") + number % 26)
        begin, end = column(each.begin_s), column(each.end_s)
        rows[each.stage][begin:end] = mark * (end - begin)
    for stage, (end_s, tail) in enumerate(zip(last_s, tails, strict=True)):
        begin, end = column(end_s), column(end_s + tail)
        rows[stage][begin:end] = "=" * (end - begin)
    return ["".join(row) for row in rows]
