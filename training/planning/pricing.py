"""What one layout costs: memory, time, bytes sent; and whether it fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from training.planning.blocks import Block, build_blocks
from training.planning.communication import stage_messages
from training.planning.flops import training_flops
from training.planning.hardware import GIB, Cluster
from training.planning.memory import MemoryParts, in_flight, stage_memory
from training.planning.messages import STEP, Message
from training.planning.priced_layout import PricedLayout, check_layout, micro_batches
from training.planning.schedule import Timeline, estimate_seconds, simulate
from training.planning.stages import cut
from training.planning.timing import StageSeconds, block_computing, stage_seconds
from training.planning.workload import Network, Work


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What is to be trained, and how many tokens."""

    network: Network
    work: Work
    """One step of the whole run; its number of rows is whole."""
    tokens: float

    @property
    def steps(self) -> float:
        """Steps that the tokens make."""
        return self.tokens / self.work.tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """One purpose, on the busiest GPU, in a step."""

    purpose: str
    sent_bytes: float
    seconds: float
    """With nothing hidden."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Price:
    """A layout that fits."""

    layout: PricedLayout
    split: str
    micro_batches: int
    stages: tuple[tuple[Block, ...], ...]
    memory: tuple[MemoryParts, ...]
    """One GPU of each stage."""
    traffic: tuple[Traffic, ...]
    timeline: Timeline
    """With overlap."""
    ends_s: tuple[float, ...]
    """What each stage does after its last pass, with overlap."""
    step_s: float
    """With overlap."""
    blocking_step_s: float
    """Every transfer waited for."""
    computing_step_s: float
    """Every transfer free: what is left is computing and the pipeline's bubble."""
    tokens_per_s: float
    hours: float
    mfu: float
    """Useful FLOPs over the peak of all GPUs."""

    @property
    def peak(self) -> MemoryParts:
        """Of the fullest stage."""
        return max(self.memory, key=lambda parts: parts.total)

    @property
    def bubble(self) -> float:
        """Part of the pipeline's time in which stages wait, messages included."""
        return self.timeline.bubble

    @property
    def exposed_s(self) -> float:
        """Communication that is seen in a step, with overlap."""
        return self.step_s - self.computing_step_s

    @property
    def blocking_exposed_s(self) -> float:
        """The same without overlap."""
        return self.blocking_step_s - self.computing_step_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """A layout that fits the memory, its step not simulated yet."""

    layout: PricedLayout
    split: str
    micro_batches: int
    stages: list[list[Block]]
    memory: list[MemoryParts]
    messages: list[list[Message]]
    work: Work
    """One micro-batch."""
    estimate_s: float


def draft(job: Job, cluster: Cluster, layout: PricedLayout, split: str) -> Draft:
    """Check a layout and weigh it. Raises ValueError, with the reason, for one that is not legal or does not fit."""
    config = job.network
    check_layout(config, job.work, layout, cluster.gpus)
    count = micro_batches(layout, round(job.work.rows))
    work = job.work.of_rows(layout.micro_rows)
    stages = _stages(config, work, replace(layout, data=1, zero=0), split, cluster)
    memory = [
        stage_memory(
            config,
            work,
            layout,
            stage,
            in_flight(index, len(stages), count),
            cluster.assumptions,
            is_last=index == len(stages) - 1,
        )
        for index, stage in enumerate(stages)
    ]
    fullest = max(range(len(stages)), key=lambda index: memory[index].total)
    need, have = memory[fullest].total, cluster.gpu.memory_bytes
    if need > have:
        raise ValueError(
            f"stage {fullest} needs {need / GIB:.1f} GiB of {have / GIB:.1f}: {_largest_part(memory[fullest])}"
        )
    messages = [stage_messages(config, work, layout, stages, index, cluster) for index in range(len(stages))]
    found = Draft(
        layout=layout,
        split=split,
        micro_batches=count,
        stages=stages,
        memory=memory,
        messages=messages,
        work=work,
        estimate_s=0.0,
    )
    seconds = _all_seconds(job, cluster, found, overlap=True)
    times = estimate_seconds([each.times for each in seconds], count) + max(
        each.data_s + each.update_s for each in seconds
    )
    return replace(found, estimate_s=times)


@lru_cache(maxsize=256)
def _stages(config: Network, work: Work, layout: PricedLayout, split: str, cluster: Cluster) -> list[list[Block]]:
    """The same for every number of data ranks and stage of ZeRO."""

    def cost(block: Block) -> float:
        seconds = block_computing(config, work, layout, block, cluster)
        return seconds.forward_s + seconds.backward_s

    return cut(build_blocks(config, work), layout.pipeline, split, cost)


def price(job: Job, cluster: Cluster, found: Draft) -> Price:
    """Simulate a step of a draft."""
    with_overlap = _all_seconds(job, cluster, found, overlap=True)
    step_s, timeline = _step(with_overlap, found.micro_batches)
    blocking_s, _ = _step(_all_seconds(job, cluster, found, overlap=False), found.micro_batches)
    silent = replace(found, messages=[[] for _ in found.stages])
    computing_s, _ = _step(_all_seconds(job, cluster, silent, overlap=True), found.micro_batches)
    useful = training_flops(job.network, job.work)
    return Price(
        layout=found.layout,
        split=found.split,
        micro_batches=found.micro_batches,
        stages=tuple(tuple(stage) for stage in found.stages),
        memory=tuple(found.memory),
        traffic=tuple(_traffic(found)),
        timeline=timeline,
        ends_s=tuple(each.data_s + each.update_s for each in with_overlap),
        step_s=step_s,
        blocking_step_s=blocking_s,
        computing_step_s=computing_s,
        tokens_per_s=job.work.tokens / step_s,
        hours=job.steps * step_s / 3600,
        mfu=useful / step_s / (cluster.gpus * cluster.gpu.bf16_flops),
    )


def _all_seconds(job: Job, cluster: Cluster, found: Draft, *, overlap: bool) -> list[StageSeconds]:
    last = len(found.stages) - 1
    return [
        stage_seconds(
            job.network,
            found.work,
            found.layout,
            stage,
            found.messages[index],
            cluster,
            overlap=overlap,
            is_last=index == last,
        )
        for index, stage in enumerate(found.stages)
    ]


def _step(seconds: Sequence[StageSeconds], count: int) -> tuple[float, Timeline]:
    """Gradients are summed as stages end; the norm, which clips them, waits for all; then all update."""
    timeline = simulate([each.times for each in seconds], count)
    summed_s = max(end + each.data_s for end, each in zip(timeline.ends_s, seconds, strict=True))
    return summed_s + max(each.update_s for each in seconds), timeline


def _traffic(found: Draft) -> list[Traffic]:
    """By purpose, of the stage that sends most of it."""
    most: dict[str, Traffic] = {}
    for messages in found.messages:
        sums: dict[str, tuple[float, float]] = {}
        for message in messages:
            times = 1 if message.when == STEP else found.micro_batches
            sent, seconds = sums.get(message.purpose, (0.0, 0.0))
            sums[message.purpose] = sent + times * message.sent_bytes, seconds + times * message.seconds
        for purpose, (sent, seconds) in sums.items():
            if purpose not in most or sent > most[purpose].sent_bytes:
                most[purpose] = Traffic(purpose=purpose, sent_bytes=sent, seconds=seconds)
    return list(most.values())


def _largest_part(parts: MemoryParts) -> str:
    sizes = {name: getattr(parts, name) for name in MemoryParts.__slots__}
    name = max(sizes, key=lambda part: sizes[part])
    fixes = {
        "parameters": "more tensor or pipeline ranks, or zero=3, divide them",
        "gradients": "more tensor or pipeline ranks, or zero=2, divide them",
        "optimizer": "more tensor or pipeline ranks, or zero=1, divide them",
        "activations": "smaller micro-batches or checkpointing hold fewer",
        "logits": "smaller micro-batches or more tensor ranks hold fewer",
        "buffers": "more tensor or pipeline ranks make them smaller",
        "reserved": "this is assumed, see --reserved-gb",
    }
    return f"{sizes[name] / GIB:.1f} GiB are {name}; {fixes[name]}"
