"""Memory of one GPU, by part, for every stage of a layout.

States follow ZeRO (Rajbhandari et al. 2020, section 3) for AdamW. ZeRO-1 to 3 in bf16: 2 bytes a parameter, 2 its
gradient, 12 its optimizer states (float32 copy and two moments), each divided among the data ranks from its stage on;
in float32 4, 4 and 12, for DeepSpeed makes the copy all the same. ZeRO-0: 4, 4 and 8, for autocast casts float32
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from training.planning.activations import block_activations, memory_values, transient_logits
from training.planning.blocks import Block, runs
from training.planning.hardware import Assumptions
from training.planning.priced_layout import PricedLayout
from training.planning.workload import Network, Work

VALUE_BYTES = {"bf16": 2, "fp32": 4}
"""Of activations and messages."""
BUCKET_ELEMENTS = 500_000_000
"""Gradients that ZeRO collects, at most, before it sums them up (DeepSpeed's default)."""
CHECKPOINTED = ("encoder layer", "hybrid layer", "writer layer", "pointer layer")
"""Blocks that activation checkpointing computes again."""
READS_MEMORY = ("masked head", "span head", "router", "writer layer", "pointer layer", "pointer head")
"""Blocks that read the encoder's result: a stage with one keeps it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryParts:
    """Bytes of one GPU."""

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    """Of all micro-batches in flight, and of the block that is being computed again."""
    logits: float
    """Log softmax kept for the backward pass, and the largest chunk while its loss is computed."""
    buffers: float
    """Cast or gathered parameters, gradients on their way, messages between stages."""
    reserved: float
    """Assumed."""

    @property
    def total(self) -> float:
        """All parts."""
        return sum(getattr(self, part.name) for part in fields(self))


def in_flight(stage: int, stages: int, micro_batches: int) -> int:
    """Micro-batches whose activations a stage of a 1F1B pipeline holds at once."""
    return min(micro_batches, stages - stage)


def stage_parameters(config: Network, layout: PricedLayout, stage: Sequence[Block]) -> float:
    """Parameters of one tensor rank of a stage, not divided by ZeRO, with its copy of a tied embedding."""
    count = sum(times * block.parameters.per_rank(layout.tensor) for block, times in runs(stage))
    if holds_embedding(stage) and not any(block.kind == "embedding" for block in stage):
        count += config.vocab_size * config.d_model / layout.tensor
    return count


def holds_embedding(stage: Sequence[Block]) -> bool:
    """Whether a stage reads or writes tokens: it then has the embedding, or a copy of it."""
    return any(block.ties_embedding for block in stage)


def state_bytes(parameters: float, layout: PricedLayout) -> tuple[float, float, float]:
    """Parameters, gradients and AdamW's states of so many parameters on one GPU, in bytes."""
    value = VALUE_BYTES[layout.precision]
    whole = (value, value, 12) if layout.zero else (4, 4, 8)
    divided_from = (3, 2, 1)
    weights, gradients, optimizer = (
        parameters * size / (layout.shards if layout.zero >= stage else 1)
        for size, stage in zip(whole, divided_from, strict=True)
    )
    return weights, gradients, optimizer


def stage_memory(
    config: Network,
    work: Work,
    layout: PricedLayout,
    stage: Sequence[Block],
    flying: int,
    assumptions: Assumptions,
    *,
    is_last: bool,
) -> MemoryParts:
    """Memory of one GPU of a stage.

    Args:
        config: the network.
        work: one micro-batch of one data rank, its rows in whole width.
        layout: how it is shared.
        stage: blocks of the stage.
        flying: micro-batches whose activations it holds.
        assumptions: what is reserved.
        is_last: whether it is the pipeline's last stage.
    """
    parameters, gradients, optimizer = state_bytes(stage_parameters(config, layout, stage), layout)
    kept, again = _activation_bytes(config, work, layout, stage)
    recomputes = layout.recomputes_stage(is_last=is_last)
    if recomputes:
        kept, again = _input_bytes(config, work, layout), kept + again
    logits = sum(
        block_activations(config, work, block.kind).logits_bytes(layout.tensor, layout.sequence)
        for block in stage
        if block.targets
    )
    return MemoryParts(
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        activations=flying * kept + again,
        logits=(1 if recomputes else flying) * logits + _transient_logits(config, layout, stage),
        buffers=_buffers(config, work, layout, stage, is_last=is_last),
        reserved=assumptions.reserved_bytes,
    )


def _activation_bytes(config: Network, work: Work, layout: PricedLayout, stage: Sequence[Block]) -> tuple[float, float]:
    """What one micro-batch keeps on one rank, and the largest part that is there once while it is computed again."""
    value = VALUE_BYTES[layout.precision]
    stream = 4 if layout.zero == 0 else value
    kept, largest = 0.0, 0.0
    for block, count in runs(stage):
        each = block_activations(config, work, block.kind)
        whole = each.kept_bytes(layout.tensor, layout.sequence, value)
        if layout.checkpointing and block.kind in CHECKPOINTED:
            kept += count * each.checkpoint_bytes(layout.sequence, stream)
            largest = max(largest, whole / each.units)
        else:
            kept += count * whole
    kinds = {block.kind for block in stage}
    if "hybrid layer" not in kinds and kinds & set(READS_MEMORY):
        kept += memory_values(config, work) / layout.sequence * value
    return kept, largest


def _input_bytes(config: Network, work: Work, layout: PricedLayout) -> float:
    """What a stage receives, at most: the memory and a decoder's states, which are no larger."""
    return 2 * memory_values(config, work) / layout.sequence * VALUE_BYTES[layout.precision]


def _transient_logits(config: Network, layout: PricedLayout, stage: Sequence[Block]) -> float:
    """The largest chunk of logits of a stage while its loss is computed."""
    values, floats = transient_logits(config, max(block.targets for block in stage) / layout.sequence)
    return (values * VALUE_BYTES[layout.precision] + floats * 4) / layout.tensor


def _buffers(config: Network, work: Work, layout: PricedLayout, stage: Sequence[Block], *, is_last: bool) -> float:
    """Whole tensors on their way: casts, ZeRO's, and a stage's messages in both directions."""
    value, count = VALUE_BYTES[layout.precision], stage_parameters(config, layout, stage)
    total = 0.0
    if layout.zero == 0:
        total += count * value if layout.precision == "bf16" else 0
        total += count * 4 if layout.shards > 1 else 0  # all gradients in one piece
    elif layout.shards > 1:
        total += min(BUCKET_ELEMENTS, count) * value
        if layout.zero == 3:
            # Kept gathered, or the block at work and the one that is fetched ahead of it.
            block = max(block.parameters.per_rank(layout.tensor) for block in stage)
            total += (count if layout.gathers(count, is_last=is_last) == 1 else 2 * block) * value
    if layout.pipeline > 1:
        total += 2 * _input_bytes(config, work, layout)
    return total
