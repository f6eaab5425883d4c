"""Memory formulas: states against tensors that AdamW really holds, and what more GPUs may never do."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.configuration import HybridConfig
from model.network import HybridModel
from training.planning.blocks import build_blocks
from training.planning.flops import parameter_count
from training.planning.hardware import Assumptions
from training.planning.memory import MemoryParts, in_flight, stage_memory, stage_parameters, state_bytes
from training.planning.priced_layout import PricedLayout
from training.planning.stages import cut, together
from training.planning.workload import Network, mixed_work

ASSUMED = Assumptions(reserved_bytes=0)
NANO = Network.of(HybridConfig.from_preset("nano"))
TEACHER = Network.of(HybridConfig.from_preset("teacher"))
tensors = st.sampled_from([1, 2, 4])
layouts = st.builds(
    PricedLayout,
    data=st.sampled_from([1, 2, 4, 8]),
    tensor=tensors,
    pipeline=st.sampled_from([1, 2, 4]),
    sequence=st.sampled_from([1, 2]),
    zero=st.integers(0, 3),
    micro_rows=st.sampled_from([1, 2, 8]),
    checkpointing=st.booleans(),
    precision=st.sampled_from(["bf16", "fp32"]),
)


def first_stage(layout: PricedLayout, network: Network = TEACHER) -> MemoryParts:
    """Of the stage with the encoder's first layers, cut by layers so that it does not depend on the work."""
    work = mixed_work(layout.micro_rows, 512, 128)
    blocks = build_blocks(network, work)
    stages = cut(blocks, layout.pipeline, "cost", lambda _: 1.0)
    return stage_memory(
        network, work, layout, stages[0], in_flight(0, len(stages), 8), ASSUMED, is_last=len(stages) == 1
    )


def test_whole_states_are_the_tensors_that_adamw_holds() -> None:
    model = HybridModel(HybridConfig.from_preset("nano"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [
        value for state in optimizer.state.values() for name, value in state.items() if name.startswith("exp_avg")
    ]
    held = [
        sum(tensor.untyped_storage().nbytes() for tensor in tensors_)
        for tensors_ in (list(model.parameters()), [p.grad for p in model.parameters()], moments)
    ]
    assert held == list(state_bytes(parameter_count(NANO), PricedLayout(precision="fp32")))


@pytest.mark.parametrize("pipeline", [1, 2, 3, 5])
def test_stages_hold_the_whole_network_and_copies_of_the_embedding(pipeline: int) -> None:
    stages = cut(build_blocks(TEACHER, mixed_work(2, 512, 128)), pipeline, "cost", lambda block: block.forward_flops)
    held = [stage_parameters(TEACHER, PricedLayout(pipeline=pipeline), stage) for stage in stages]
    copies = sum(any(block.ties_embedding for block in stage) for stage in stages[1:])
    assert sum(held) == parameter_count(TEACHER) + copies * TEACHER.vocab_size * TEACHER.d_model


@settings(deadline=None)
@given(pipeline=st.integers(1, 12), seed=st.integers(0, 1000))
def test_stages_follow_the_chain_and_no_other_cut_is_cheaper(pipeline: int, seed: int) -> None:
    """Against the exact solution, by dynamic programming over all cuts."""
    torch.manual_seed(seed)
    blocks = build_blocks(
        replace(TEACHER, encoder_layers=5, decoder_layers=4, pointer_layers=2), mixed_work(1, 512, 128)
    )
    by_kind = {block.kind: float(torch.rand(()) + 0.01) for block in blocks}
    sums = [sum(by_kind[block.kind] for block in group) for group in together(blocks)]
    stages = cut(blocks, pipeline, "cost", lambda block: by_kind[block.kind])
    assert [block for stage in stages for block in stage] == blocks
    assert len(stages) == pipeline
    assert all(stages)
    best = [0.0, *([float("inf")] * len(sums))]
    for _ in range(pipeline):
        best = [
            min((max(best[begin], sum(sums[begin:end])) for begin in range(end)), default=float("inf"))
            for end in range(len(sums) + 1)
        ]
    dearest = max(sum(by_kind[block.kind] for block in stage) for stage in stages)
    assert dearest == pytest.approx(best[-1])


@settings(deadline=None, max_examples=60)
@given(layout=layouts, dimension=st.sampled_from(["data", "tensor", "sequence", "pipeline"]))
def test_more_gpus_never_raise_a_part_of_the_states_or_of_a_micro_batch(layout: PricedLayout, dimension: str) -> None:
    """Twice the ranks of one dimension. Buffers are messages, which one rank alone does not have; activations of a
    pipeline are of more micro-batches at once, so there they are compared for one micro-batch.
    """
    more = replace(layout, **{dimension: 2 * getattr(layout, dimension)})
    if TEACHER.num_heads % more.tensor or more.tensor > 4:
        return
    before, after = first_stage(layout), first_stage(more)
    same = {"parameters", "gradients", "optimizer", "logits", "activations"}
    for part in (field.name for field in fields(MemoryParts) if field.name in same):
        if dimension == "pipeline" and part in ("activations", "logits"):
            continue
        assert getattr(after, part) <= getattr(before, part) * (1 + 1e-9), part


@settings(deadline=None)
@given(layout=layouts)
def test_every_zero_stage_divides_one_more_part(layout: PricedLayout) -> None:
    """From ZeRO-1 on, for ZeRO-0 in bf16 keeps float32 weights."""
    found = [first_stage(replace(layout, zero=zero)) for zero in (1, 2, 3)]
    shards = layout.shards
    assert found[1].gradients == pytest.approx(found[0].gradients / shards)
    assert found[2].parameters == pytest.approx(found[0].parameters / shards)
    assert found[0].optimizer == found[1].optimizer == found[2].optimizer


@settings(deadline=None)
@given(layout=layouts)
def test_checkpointing_keeps_less_of_many_layers(layout: PricedLayout) -> None:
    without = first_stage(replace(layout, checkpointing=False))
    assert first_stage(replace(layout, checkpointing=True)).activations < without.activations


def test_checkpointing_saves_most_of_the_teachers_activations() -> None:
    layout = PricedLayout(micro_rows=64)
    without, with_ = first_stage(layout), first_stage(replace(layout, checkpointing=True))
    assert with_.activations < 0.4 * without.activations
