"""Everything that one rank of a stage sends in a step.

    within a layer   training/planning/exchanges.py
    data             gradients once a step (ZeRO-0, 1) or with every micro-batch (2, 3); new parameters once a step
                     (1, 2); parameters in both passes (3)
    pipeline         states and the encoder's memory from stage to stage, their gradients back; the tied embedding's

The calls are those that training/parallel and DeepSpeed make: ZeRO-1 and 2 sum whole gradients, where a scatter of sums
would send half as much.
"""

from __future__ import annotations

from collections.abc import Sequence

from training.planning.blocks import Block, runs
from training.planning.hardware import Cluster
from training.planning.layer_messages import sequence_messages, target_tokens, tensor_messages
from training.planning.memory import READS_MEMORY, VALUE_BYTES, holds_embedding, stage_parameters
from training.planning.messages import BACKWARD, FORWARD, STEP, Message, make_message
from training.planning.priced_layout import PricedLayout
from training.planning.workload import Network, Work


def stage_messages(
    config: Network, work: Work, layout: PricedLayout, stages: Sequence[Sequence[Block]], index: int, cluster: Cluster
) -> list[Message]:
    """Everything that one rank of a stage sends; `work` is one micro-batch of one data rank."""
    stage, messages = stages[index], []
    for block, count in runs(stage):
        within = tensor_messages(config, work, layout, block, cluster)
        within += sequence_messages(config, work, layout, block, cluster)
        messages += [each.times(count) for each in within]
    is_last = index == len(stages) - 1
    messages += data_messages(stage_parameters(config, layout, stage), len(stage), layout, cluster, is_last=is_last)
    messages += _pipeline_messages(config, work, layout, stages, index, cluster)
    return messages


def data_messages(
    parameters: float, blocks: int, layout: PricedLayout, cluster: Cluster, *, is_last: bool
) -> list[Message]:
    """What ZeRO sends for so many parameters of one rank of a stage, gathered in so many blocks."""
    ranks = layout.shards
    if ranks == 1:
        return []
    size, link = parameters * VALUE_BYTES[layout.precision], layout.shards_link(cluster)
    if layout.zero == 0:
        # Weights stay in float32, and so do their gradients.
        return [make_message("data", "all_reduce", STEP, parameters * 4, 1, ranks, link)]
    if layout.zero == 3:
        messages = [
            make_message("gather", "all_gather", FORWARD, size, blocks, ranks, link),
            make_message("data", "reduce_scatter", BACKWARD, size, blocks, ranks, link),
        ]
        if again := layout.gathers(parameters, is_last=is_last) - 1:
            messages.append(make_message("gather", "all_gather", BACKWARD, again * size, again * blocks, ranks, link))
        return messages
    return [
        make_message("data", "all_reduce", BACKWARD if layout.zero == 2 else STEP, size, 1, ranks, link),
        make_message("gather", "all_gather", STEP, size, 1, ranks, link),
    ]


def boundary_values(config: Network, work: Work, earlier: Block, later: Block) -> float:
    """Elements that cross a cut of the chain between two blocks: states, and the memory behind the hybrid layer."""
    d = config.d_model
    memory = work.rows * work.source_tokens * d
    reads = later.kind in READS_MEMORY or later.kind.endswith((" embedding", " head"))
    states = 0.0
    if earlier.kind in ("writer embedding", "writer layer", "pointer embedding", "pointer layer"):
        states = target_tokens(work, earlier.kind) * d
    return memory + (states if reads else 0.0)


def _pipeline_messages(
    config: Network, work: Work, layout: PricedLayout, stages: Sequence[Sequence[Block]], index: int, cluster: Cluster
) -> list[Message]:
    if layout.pipeline == 1:
        return []
    value, link, messages = VALUE_BYTES[layout.precision], layout.pipeline_link(cluster), []

    def cut_bytes(left: int) -> float:
        return boundary_values(config, work, stages[left][-1], stages[left + 1][0]) * value / layout.sequence

    if index + 1 < len(stages):
        messages.append(make_message("pipeline", "send", FORWARD, cut_bytes(index), 1, 2, link))
    if index > 0:
        messages.append(make_message("pipeline", "send", BACKWARD, cut_bytes(index - 1), 1, 2, link))
    if holds_embedding(stages[index]) and (holders := sum(holds_embedding(stage) for stage in stages)) > 1:
        # Its gradient in float32; ZeRO-3 has a part of it on every rank.
        size = config.vocab_size * config.d_model / layout.tensor * 4 / (layout.shards if layout.zero == 3 else 1)
        messages.append(make_message("tied", "all_reduce", STEP, size, 1, holders, link))
        if layout.zero in (1, 2) and layout.shards > 1:
            # DeepSpeed holds parts of it; they are made whole before the stages add theirs up.
            messages.append(
                make_message("data", "all_reduce", STEP, size, 1, layout.shards, layout.shards_link(cluster))
            )
    return messages
