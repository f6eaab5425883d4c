"""The search: every layout it offers is legal and fits, and every refusal says what would fit."""

from __future__ import annotations

from dataclasses import replace

import pytest

from model.configuration import HybridConfig
from training.planning.hardware import GPUS, Assumptions, make_cluster
from training.planning.priced_layout import PricedLayout, check_layout, micro_batches
from training.planning.pricing import Job, draft, price
from training.planning.search import Wish, layouts, search
from training.planning.workload import Network, mixed_work, written_work

STUDENT = Network.of(HybridConfig.from_preset("student"))
TEACHER = Network.of(HybridConfig.from_preset("teacher"))
JOB = Job(network=STUDENT, work=mixed_work(64, 512, 128), tokens=1e9)


def test_offered_layouts_are_legal_fit_and_stand_fastest_first() -> None:
    cluster = make_cluster("a100-40gb", 8)
    plan = search(JOB, cluster, top=100)
    assert plan.fitting == plan.tried - sum(plan.refused.values())
    assert [each.step_s for each in plan.prices] == sorted(each.step_s for each in plan.prices)
    for each in plan.prices:
        check_layout(STUDENT, JOB.work, each.layout, 8)
        assert each.layout.data * each.layout.micro_rows * each.micro_batches == 64
        assert each.peak.total <= cluster.gpu.memory_bytes
        assert each.computing_step_s <= each.step_s <= each.blocking_step_s * (1 + 1e-9)
        assert 0 < each.mfu < 1


def test_every_dimension_is_tried() -> None:
    found = list(layouts(JOB, make_cluster("a100-80gb", 8), Wish(sizes={})))
    for name in ("data", "tensor", "pipeline", "sequence"):
        assert {getattr(each, name) for each in found} >= {1, 2}
    assert {each.zero for each in found} == {0, 1, 2, 3}
    assert {each.checkpointing for each in found} == {False, True}
    assert len(set(found)) == len(found)


def test_a_network_that_no_layout_holds_is_refused_with_its_largest_part() -> None:
    wide = Network.of(HybridConfig.from_preset("teacher", d_model=12_288, num_heads=12, encoder_ffn=49_152))
    job = Job(network=wide, work=mixed_work(8, 512, 128), tokens=1e9)
    with pytest.raises(ValueError, match=r"none of \d+ layouts fits 1 × l4; .* GiB of 22\.4: .* GiB are "):
        search(job, make_cluster("l4", 1))


def test_a_layout_that_does_not_fit_names_stage_need_and_fix() -> None:
    cluster = make_cluster("l4", 8)
    job = replace(JOB, network=TEACHER, work=mixed_work(512, 512, 128))
    with pytest.raises(ValueError, match=r"stage 0 needs [\d.]+ GiB of 22\.4: [\d.]+ GiB are activations; smaller"):
        draft(job, cluster, PricedLayout(data=8, micro_rows=64), "cost")
    assert draft(job, cluster, PricedLayout(data=8, micro_rows=1), "cost").memory[0].total < cluster.gpu.memory_bytes


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"data": 3, "tensor": 2, "pipeline": 2, "sequence": 1}, r"= 12 does not make 8 GPUs: data=2 would"),
        ({"tensor": 3}, r"tensor × pipeline × sequence must divide 8"),
        ({"pipeline": 3}, r"must divide 8, and is 3"),
        ({"tensor": 16}, r"must divide 8, and is 16"),
        ({"sequence": 8}, r"sequence = 8 must divide the 8 heads .* blocks of 128: choose from 1, 2, 4"),
        ({"micro_rows": 5}, r"64 rows a step do not divide into .* micro-batches of 5: take a multiple of"),
        ({"zero": 3, "tensor": 8}, r"zero=3 divides nothing"),
    ],
)
def test_wishes_that_cannot_be_laid_out_say_what_would_fit(sizes: dict[str, int], message: str) -> None:
    job = replace(JOB, network=Network.of(HybridConfig.from_preset("student", recurrent_block=128)))
    with pytest.raises(ValueError, match=message):
        search(job, make_cluster("a100-80gb", 8), Wish(sizes=sizes))


def test_tensor_ranks_must_divide_what_they_share() -> None:
    cluster = make_cluster("a100-80gb", 10)
    with pytest.raises(ValueError, match=r"tensor = 5 does not divide num_heads = 8: choose from 1, 2, 4, 8"):
        search(JOB, cluster, Wish(sizes={"tensor": 5}))


def test_wishes_are_kept() -> None:
    wish = Wish(sizes={"pipeline": 2, "zero": 1, "checkpointing": 1, "micro_rows": 2})
    for each in search(JOB, make_cluster("h200", 8), wish, top=50).prices:
        assert (each.layout.pipeline, each.layout.zero, each.layout.micro_rows) == (2, 1, 2)
        assert each.layout.checkpointing
    with pytest.raises(ValueError, match="unknown dimension 'pipes'"):
        Wish(sizes={"pipes": 2})


def test_faster_links_and_gpus_never_make_a_longer_step() -> None:
    layout = PricedLayout(data=8, tensor=2, pipeline=2, zero=3, micro_rows=2)
    steps = []
    for gpu, interconnect in (("a100-80gb", "ethernet25"), ("a100-80gb", "hdr200"), ("h100-80gb", "ndr400")):
        cluster = make_cluster(gpu, 32, interconnect=interconnect)
        steps.append(price(JOB, cluster, draft(JOB, cluster, layout, "cost")).step_s)
    assert steps == sorted(steps, reverse=True)


def test_rings_through_whole_nodes_use_all_their_adapters() -> None:
    """Eight A100 of a node have eight adapters of 25 GB/s, and a ring through all of them can use 200 GB/s."""
    cluster = make_cluster("a100-80gb", 64, assumptions=Assumptions(network_fraction=1))
    inside, whole_nodes, one_a_node = cluster.link(1, 8), cluster.link(1, 64), cluster.link(8, 8)
    assert (inside.bandwidth, inside.ring_bandwidth) == (300e9, 300e9)
    assert (whole_nodes.bandwidth, whole_nodes.ring_bandwidth) == (25e9, 200e9)
    assert (one_a_node.bandwidth, one_a_node.ring_bandwidth) == (25e9, 25e9)
    assert cluster.link(2, 32).ring_bandwidth == 100e9
    assert one_a_node.latency_s > inside.latency_s


def test_a_step_of_one_gpu_is_what_its_blocks_take() -> None:
    """Nothing is sent and nobody waits, so a step is computing and the optimizer."""
    cluster = make_cluster("h100-80gb", 1)
    job = replace(JOB, work=written_work(64, 512, 128))
    found = price(job, cluster, draft(job, cluster, PricedLayout(micro_rows=64), "cost"))
    assert found.bubble == 0
    assert found.step_s == found.blocking_step_s == found.computing_step_s
    assert not found.traffic


def test_micro_batches_come_out_even() -> None:
    assert micro_batches(PricedLayout(data=4, micro_rows=2), 64) == 8
    with pytest.raises(ValueError, match="take a multiple of 12"):
        micro_batches(PricedLayout(data=4, micro_rows=3), 64)


@pytest.mark.parametrize("name", sorted(GPUS))
def test_every_gpu_has_a_source_and_plausible_figures(name: str) -> None:
    gpu = GPUS[name]
    assert "datasheet" in gpu.source
    assert 1e13 < gpu.bf16_flops < 1e16
    assert gpu.link_bandwidth < gpu.memory_bandwidth < 1e13


def test_unknown_parts_of_a_cluster_name_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown GPU 'a200': choose from a100-40gb, a100-80gb"):
        make_cluster("a200", 8)
    with pytest.raises(ValueError, match="unknown interconnect 'wet string': choose from hdr200"):
        make_cluster("h200", 8, interconnect="wet string")
    with pytest.raises(ValueError, match=r"matmul_fraction must be in \(0, 1\], got 2"):
        Assumptions(matmul_fraction=2)
    with pytest.raises(ValueError, match=r"zero must be 0, 1, 2 or 3, got 4"):
        PricedLayout(zero=4)
    with pytest.raises(ValueError, match=r"data must be at least 1, got 0"):
        PricedLayout(data=0)


SMALL = {"decoder_layers": 6, "pointer_layers": 1, "encoder_layers": 6}
MEASURED = {
    "teacher, 64 × (512 + 128)": ({}, (64, 512, 128), 135e3),
    "teacher, 96 × (384 + 384)": ({}, (96, 384, 384), 218e3),
    "width 512, 128 × (512 + 128)": (
        {**SMALL, "d_model": 512, "num_heads": 8, "encoder_ffn": 2048, "decoder_ffn": 2048, "hybrid_units": 4},
        (128, 512, 128),
        440e3,
    ),
    "width 384, 192 × (512 + 128)": (
        {
            **SMALL,
            "decoder_layers": 4,
            "d_model": 384,
            "num_heads": 6,
            "encoder_ffn": 1536,
            "decoder_ffn": 1536,
            "hybrid_units": 3,
        },
        (192, 512, 128),
        861e3,
    ),
}
"""Tokens/s of training runs on one H100, plain recurrences, eager mode: docs/planning.md."""


@pytest.mark.parametrize("name", MEASURED)
def test_modelled_speed_is_within_a_fifth_of_measured_speed(name: str) -> None:
    changes, sizes, measured = MEASURED[name]
    config = HybridConfig.from_preset("teacher", recurrent_block=None, **changes)
    cluster = make_cluster("h100-80gb", 1)
    job = Job(network=Network.of(config), work=written_work(*sizes), tokens=1e9)
    found = price(job, cluster, draft(job, cluster, PricedLayout(micro_rows=sizes[0]), "cost"))
    assert found.tokens_per_s == pytest.approx(measured, rel=0.2)
