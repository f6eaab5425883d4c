"""Small real training steps in several processes, every collective's bytes counted where it is called.

A module of its own, for the processes import it. The engine is the one that trains (training/engines/), and DeepSpeed
beneath it.
"""

from __future__ import annotations

import inspect
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model.configuration import HybridConfig
from tests.training.parallel.ranks import on_ranks
from training.chain import split_evenly
from training.config import Recipe, parse_recipe
from training.data.batches import Batch
from training.engines.engine import Engine
from training.engines.making import make_engine
from training.layout import Layout
from training.objectives.micro_batches import StepBatch, slice_of_source, split
from training.parallel.mesh import Mesh, make_mesh
from training.parallel.stage import Unit, costs_of, units_of
from training.planning.blocks import Block, build_blocks
from training.planning.communication import stage_messages
from training.planning.hardware import make_cluster
from training.planning.memory import stage_parameters, state_bytes
from training.planning.messages import STEP
from training.planning.priced_layout import PricedLayout
from training.planning.workload import Network, Work

ROWS = {"pretraining_rows": 4, "instruction_rows": 4, "qa_rows": 4, "summary_rows": 4}
SOURCE, TARGET, SUMMARY, GUESSES = 32, 20, 16, 5
MICRO_BATCHES = 2
OPERATIONS = {
    "all_reduce": ("all_reduce", "tensor"),
    "all_gather_into_tensor": ("all_gather", "output_tensor"),
    "reduce_scatter_tensor": ("reduce_scatter", "input"),
    "all_to_all_single": ("all_to_all", "input"),
    "isend": ("send", "tensor"),
    "send": ("send", "tensor"),
    "reduce": ("reduce", "tensor"),
    "broadcast": ("broadcast", "tensor"),
}
"""Functions of torch.distributed: the planner's name, and the argument whose size it speaks of."""
DIMENSIONS = {
    "tensor": "tensor",
    "data": "zero",
    "gather": "zero",
    "pipeline": "pipeline",
    "tied": "tied",
    "sequence": "sequence",
    "halo": "sequence",
}
"""Groups over which the planner's purposes speak."""

Sizes = dict[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class Found:
    """What one process did in one step, and what the planner says of it; bytes."""

    counted: Sizes
    """By group and operation."""
    expected: Sizes
    held: dict[str, float]
    expected_held: dict[str, float]


class Counted:
    """What torch.distributed was called with since the last `start`; made before DeepSpeed looks its functions up."""

    def __init__(self) -> None:
        self.sizes: Counter[tuple[str, str]] = Counter()
        self._names: dict[int, str] = {}
        self._inside = False
        for name in OPERATIONS:
            setattr(dist, name, self._counted(name))

    def start(self, names: dict[int, str]) -> None:
        """Forget, and call groups by these names from now on; keys are their ids."""
        self.sizes, self._names = Counter(), names

    def _counted(self, name: str) -> Callable[..., Any]:
        original = getattr(dist, name)
        operation, argument = OPERATIONS[name]
        signature = inspect.signature(original)

        def call(*arguments: Any, **named: Any) -> Any:
            if self._inside:
                return original(*arguments, **named)
            bound = signature.bind(*arguments, **named).arguments
            group = self._names.get(id(bound.get("group")), "other")
            self.sizes[group, operation] += bound[argument].numel() * bound[argument].element_size()
            self._inside = True
            try:
                return original(*arguments, **named)
            finally:
                self._inside = False

        return call


def made_batch() -> Batch:
    """Random rows without padding, whose every target counts."""
    chance = torch.Generator().manual_seed(1)

    def tokens(*shape: int) -> Tensor:
        return torch.randint(16, 32_000, shape, generator=chance)

    rows, written = sum(ROWS.values()), ROWS["pretraining_rows"] + ROWS["instruction_rows"]
    return Batch(
        source_BS=tokens(rows, SOURCE).int(),
        lengths_B=torch.full((rows,), SOURCE, dtype=torch.int32),
        route_B=torch.randint(0, 3, (rows,), generator=chance),
        masked_PM=torch.randint(0, SOURCE, (ROWS["pretraining_rows"], GUESSES), generator=chance),
        masked_labels_PM=tokens(ROWS["pretraining_rows"], GUESSES),
        continuation_GT=tokens(written, TARGET),
        context_Q2=torch.tensor([[2, SOURCE]] * ROWS["qa_rows"], dtype=torch.int32),
        answer_Q2=torch.tensor([[4, 6]] * ROWS["qa_rows"], dtype=torch.int32),
        summary_UT=tokens(ROWS["summary_rows"], SUMMARY),
        tokens=rows * SOURCE,
    )


def micro_work(data: int) -> Work:
    """One micro-batch of one of `data` ranks."""
    share = data * MICRO_BATCHES
    return Work(
        rows=sum(ROWS.values()) / share,
        source_tokens=SOURCE,
        written_rows=(ROWS["pretraining_rows"] + ROWS["instruction_rows"]) / share,
        target_tokens=TARGET,
        asked_rows=ROWS["qa_rows"] / share,
        summed_rows=ROWS["summary_rows"] / share,
        summary_tokens=SUMMARY,
        guesses=ROWS["pretraining_rows"] * GUESSES / share,
    )


def made_recipe(layout: Layout, *, checkpointing: bool) -> Recipe:
    """AdamW on a nano network, in fp32."""
    sizes = {"source_tokens": SOURCE, "target_tokens": TARGET, "summary_tokens": SUMMARY}
    parallel = {name: getattr(layout, name) for name in ("data", "tensor", "pipeline", "sequence", "zero")}
    weights = {name: {"any": 1.0} for name in ("qa_early", "qa_late", "summary_early", "summary_late", "instruction")}
    return parse_recipe(
        {
            "model": {"preset": "nano"},
            "data": {"folder": "none", "tokenizer": "none"},
            "batch": {**ROWS, **sizes, "micro_batches": MICRO_BATCHES},
            "mixture": {"begin": 1, "end": 2, **weights},
            "schedule": {"warmup_steps": 1, "max_steps": 2},
            "optimizer": {"kind": "adamw"},
            "memory": {"activation_checkpointing": checkpointing},
            "parallel": {**parallel, "whole_below": 0},
            "run": {"output": "none", "device": "cpu", "precision": "fp32"},
        }
    )


def blocks_of(unit: Unit, chain: list[Block]) -> list[Block]:
    """The planner's blocks of a unit of the real pipeline."""
    first = {"generative": "writer", "pointer": "pointer"}
    kinds = {
        "source": ("embedding",),
        "encoder": ("encoder layer",),
        "memory": ("hybrid layer", "masked head", "span head", "router"),
        "written": ("writer head",),
        "summed": ("pointer head",),
    }.get(unit.kind)
    if kinds is None:
        name = first[unit.kind]
        kinds = (f"{name} embedding", f"{name} layer") if unit.index == 0 else (f"{name} layer",)
    by_kind = {block.kind: block for block in chain}
    return [by_kind[kind] for kind in kinds]


def take_steps(layout: Layout, checkpointing: bool, counted: Counted) -> Found:
    """Two steps on the processes that run; the second is counted, for ZeRO-3 learns its order in the first."""
    recipe = made_recipe(layout, checkpointing=checkpointing)
    mesh = make_mesh(layout, torch.device("cpu"))
    engine = make_engine(recipe, mesh, torch.float32)
    block = engine.stage.network.config.recurrent_block
    batch = slice_of_source(made_batch(), mesh.sequence.rank, mesh.sequence.size, block)
    parts = split(batch, mesh.data.rank, mesh.data.size, MICRO_BATCHES, all_heads=True)
    groups = {id(getattr(mesh, name).group): name for name in ("tensor", "sequence", "zero", "pipeline")}
    groups |= {id(mesh.backward.group): "pipeline", id(mesh.model.group): "model"}
    if mesh.pipeline.size > 1:
        groups[id(engine.tied.group)] = "tied"  # type: ignore[attr-defined]
    groups.pop(id(None), None)
    for step in range(2):
        counted.start(groups)
        engine.forward_backward(StepBatch(step=step, micro_batches=parts, tokens=0))
        engine.step(1.0)
    planned = PricedLayout(**asdict(layout), checkpointing=checkpointing, precision="fp32")
    return Found(dict(counted.sizes), *_expected(recipe, mesh, planned, engine))


def _expected(recipe: Recipe, mesh: Mesh, layout: PricedLayout, engine: Engine) -> tuple[Sizes, dict, dict]:
    config = HybridConfig.from_preset("nano")
    network, work, units = Network.of(config), micro_work(layout.data), units_of(config)
    chain = build_blocks(network, work)
    ranges = split_evenly(costs_of(recipe, config), layout.pipeline)
    stages = [[block for index in own for block in blocks_of(units[index], chain)] for own in ranges]
    cluster = make_cluster("h100-80gb", layout.world_size)
    sizes: Counter[tuple[str, str]] = Counter()
    for message in stage_messages(network, work, layout, stages, mesh.pipeline.rank, cluster):
        times = 1.0 if message.when == STEP else MICRO_BATCHES
        operation = message.operation
        if message.purpose == "halo":
            # Sent in an all-to-all; and the planner speaks of a rank with two neighbours.
            operation = "all_to_all"
            times *= ((mesh.sequence.rank > 0) + (mesh.sequence.rank < mesh.sequence.size - 1)) / 2
        sizes[DIMENSIONS[message.purpose], operation] += times * message.size_bytes
    parameters, _, optimizer = state_bytes(stage_parameters(network, layout, stages[mesh.pipeline.rank]), layout)
    return dict(sizes), held_bytes(engine, layout), {"parameters": parameters, "optimizer": optimizer}


def held_bytes(engine: Any, layout: PricedLayout) -> dict[str, float]:
    """What one process holds between steps."""
    if layout.zero == 0:
        weights = sum(each.numel() * each.element_size() for each in engine.parameters.values())
        optimizers: list[Any] = list(engine.optimizers.optimizers)
        flat: list[Tensor] = []
    else:
        optimizer = engine.optimizer
        weights = sum(
            (each.ds_tensor if layout.zero == 3 else each).numel() * each.element_size()
            for each in engine.parameters.values()
        )
        optimizers = [optimizer.optimizer]
        flat = optimizer.fp32_partitioned_groups_flat if layout.zero == 3 else optimizer.single_partition_of_fp32_groups
    moments = [
        value
        for each in optimizers
        for state in each.state.values()
        for name, value in state.items()
        if name.startswith("exp_avg")
    ]
    return {"parameters": weights, "optimizer": sum(each.numel() * 4 for each in (*moments, *flat))}


def on_processes(size: int, runs: list[tuple[Layout, bool]]) -> list[list[Found]]:
    """Every run's findings, by process, in one start of `size` processes."""
    found = on_ranks(size, _all_of, runs)
    return [[process[index] for process in found] for index in range(len(runs))]


def _all_of(runs: list[tuple[Layout, bool]]) -> list[Found]:
    """Every run's findings of one process."""
    counted = Counted()
    return [take_steps(layout, checkpointing, counted) for layout, checkpointing in runs]


def write_results(output: Path, runs: dict[int, list[tuple[Layout, bool]]]) -> None:
    """Every run's findings as JSON, a line for each process: bytes as [counted, planned]."""
    rows = []
    for size, own in runs.items():
        for (layout, checkpointing), processes in zip(own, on_processes(size, own), strict=True):
            for rank, found in enumerate(processes):
                sent = {
                    " ".join(key): [found.counted.get(key, 0), found.expected.get(key, 0)]
                    for key in sorted({*found.counted, *found.expected})
                }
                held = {name: [bytes_, found.expected_held[name]] for name, bytes_ in found.held.items()}
                told = {"layout": str(layout), "checkpointing": checkpointing, "rank": rank, "sent": sent, "held": held}
                rows.append(json.dumps(told, ensure_ascii=False))
    output.write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")
