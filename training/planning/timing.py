"""Seconds of one stage: computing, and waiting for what others send.

Matrix products run at a fraction of the GPU's peak; elementwise work moves every kept value through memory twice
forward and four times backward; a recurrence takes its steps one after another in either pass. What of a transfer is
seen:

    without overlap   all of it
    with overlap      tensor parallelism's sums all the same, for the next product waits for them; exchanges of
                      sequence ranks, ZeRO's gathers and sums of gradients as far as the computing beside them is too
                      short, and of gathers the first block's; messages between stages travel while both compute
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from training.planning.activations import LOSS_CHUNK, block_activations
from training.planning.blocks import BACKWARD as BACKWARD_PASSES
from training.planning.blocks import Block, runs
from training.planning.hardware import Cluster
from training.planning.layer_messages import TURNS
from training.planning.memory import CHECKPOINTED, VALUE_BYTES, stage_parameters, state_bytes
from training.planning.messages import BACKWARD, FORWARD, STEP, Message
from training.planning.priced_layout import PricedLayout
from training.planning.schedule import StageTimes
from training.planning.workload import Network, Work

TF32_FRACTION = 0.5
"""Of the bf16 peak: float32 products run in TF32, as training/train.py asks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Computing:
    """Seconds of one micro-batch on one rank of a stage, messages not counted."""

    forward_s: float
    backward_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StageSeconds:
    """One micro-batch, and the end of a step."""

    times: StageTimes
    """Computing and the part of transfers that is seen."""
    computing: Computing
    data_s: float
    """Gradients that are summed up once a step, as far as it is seen."""
    update_s: float
    """Optimizer, and parameters gathered behind it."""
    seen_s: dict[str, float]
    """Of each purpose in one micro-batch; `pipeline` is in the schedule."""


@lru_cache(maxsize=4096)
def block_computing(config: Network, work: Work, layout: PricedLayout, block: Block, cluster: Cluster) -> Computing:
    """Seconds of one block on one rank; its second forward pass under checkpointing is part of the backward one."""
    gpu, assumed, value = cluster.gpu, cluster.assumptions, VALUE_BYTES[layout.precision]
    peak = gpu.bf16_flops * (1.0 if layout.precision == "bf16" else TF32_FRACTION) * assumed.matmul_fraction
    bandwidth = gpu.memory_bandwidth * assumed.memory_fraction
    products_s = block.flops.per_rank(layout.tensor) / layout.sequence / peak
    kept = block_activations(config, work, block.kind).kept_bytes(layout.tensor, layout.sequence, value)
    logits = block.targets * config.vocab_size / layout.tensor / layout.sequence
    # Logits, their copy in float32 and its log softmax are each written and read.
    elementwise_s = (2 * kept + logits * (2 * value + 4 * 4)) / bandwidth
    turns = TURNS if layout.sequence > 1 else 1
    scan_s = turns * block.recurrent_steps * assumed.recurrent_step_s
    recurrent_s = block.recurrent_flops / layout.sequence / peak
    forward_s = products_s + elementwise_s + max(recurrent_s, scan_s)
    # Back through the steps once as well: the weights' gradient is one product over all of them.
    backward_s = BACKWARD_PASSES * (products_s + elementwise_s) + max(BACKWARD_PASSES * recurrent_s, scan_s)
    again = (layout.checkpointing and block.kind in CHECKPOINTED) or block.targets / layout.sequence > LOSS_CHUNK
    return Computing(forward_s=forward_s, backward_s=backward_s + again * forward_s)


def stage_seconds(
    config: Network,
    work: Work,
    layout: PricedLayout,
    stage: Sequence[Block],
    messages: Sequence[Message],
    cluster: Cluster,
    *,
    overlap: bool,
    is_last: bool,
) -> StageSeconds:
    """Seconds of one stage; `work` is one micro-batch of one data rank."""
    each = [(block_computing(config, work, layout, block, cluster), count) for block, count in runs(stage)]
    forward_s = sum(count * block.forward_s for block, count in each)
    backward_s = sum(count * block.backward_s for block, count in each)
    if layout.recomputes_stage(is_last=is_last):
        backward_s += forward_s
    seen: dict[str, float] = {}
    waits = {FORWARD: 0.0, BACKWARD: 0.0}
    for when, beside_s in ((FORWARD, forward_s), (BACKWARD, backward_s)):
        for purpose, seconds in _by_purpose(messages, when).items():
            if purpose == "pipeline":
                continue
            visible_s = _seen(purpose, seconds, beside_s, len(stage)) if overlap else seconds
            waits[when] += visible_s
            seen[purpose] = seen.get(purpose, 0.0) + visible_s
    sent = {when: _by_purpose(messages, when).get("pipeline", 0.0) for when in (FORWARD, BACKWARD)}
    blocking = (lambda when: 0.0) if overlap else sent.__getitem__
    times = StageTimes(
        forward_s=forward_s + waits[FORWARD] + blocking(FORWARD),
        backward_s=backward_s + waits[BACKWARD] + blocking(BACKWARD),
        to_next_s=sent[FORWARD] if overlap else 0.0,
        to_previous_s=sent[BACKWARD] if overlap else 0.0,
    )
    at_end = _by_purpose(messages, STEP)
    data_s = at_end.get("data", 0.0)
    if overlap:
        data_s = _seen("data", data_s, backward_s, len(stage))
    return StageSeconds(
        times=times,
        computing=Computing(forward_s=forward_s, backward_s=backward_s),
        data_s=data_s + at_end.get("tied", 0.0),
        update_s=at_end.get("gather", 0.0) + optimizer_seconds(config, layout, stage, cluster),
        seen_s=seen,
    )


def optimizer_seconds(config: Network, layout: PricedLayout, stage: Sequence[Block], cluster: Cluster) -> float:
    """AdamW reads gradients and states once and writes states and parameters: as fast as memory is."""
    states = state_bytes(stage_parameters(config, layout, stage), layout)
    shards = layout.shards if layout.zero else 1
    weights, gradients = (
        size / (1 if layout.zero >= stage_ else shards) for size, stage_ in zip(states[:2], (3, 2), strict=True)
    )
    moved = weights + gradients + 2 * states[2]
    return moved / (cluster.gpu.memory_bandwidth * cluster.assumptions.memory_fraction)


def _by_purpose(messages: Sequence[Message], when: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for message in messages:
        if message.when == when:
            found[message.purpose] = found.get(message.purpose, 0.0) + message.seconds
    return found


def _seen(purpose: str, seconds: float, beside_s: float, blocks: int) -> float:
    """What computing for `beside_s` does not hide."""
    if purpose == "tensor":
        return seconds
    if purpose in ("gather", "data"):
        # The first block's parameters, or the last one's gradient, have nothing beside them.
        alone_s = seconds / blocks
        return alone_s + max(0.0, seconds - alone_s - beside_s)
    return max(0.0, seconds - beside_s)
