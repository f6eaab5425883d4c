"""From a recipe to the engine of one process: its part of the network, laid out, with the optimizer that fits."""

from __future__ import annotations

import torch

from model.configuration import HybridConfig
from model.network import HybridModel
from training.chain import split_evenly
from training.config import Recipe
from training.engines.engine import Engine, one_by_one
from training.engines.local import LocalEngine
from training.engines.pipeline import one_forward_one_backward
from training.kernels.choice import join_recurrences
from training.memory import checkpoint_layers
from training.parallel.mesh import Mesh, Ring
from training.parallel.sequence import apply_sequence_parallel
from training.parallel.stage import Stage, costs_of, units_of
from training.parallel.tensor import apply_tensor_parallel

LOWER_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
WHOLE_WEIGHTS = 3
"""ZeRO's stages below this one keep them on every process."""


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of matrix products. CPUs keep to fp32, whatever the recipe says: lower precisions are slower there."""
    return LOWER_PRECISIONS.get(precision, torch.float32) if device.type == "cuda" else torch.float32


def make_engine(recipe: Recipe, mesh: Mesh, dtype: torch.dtype) -> Engine:
    """The recipe's network, or this process' part of it, with its optimizer.

    Every process draws the whole network from the recipe's seed and keeps its part, so all layouts begin alike.
    """
    config = HybridConfig.from_preset(recipe.model.preset, **recipe.model.overrides)
    torch.manual_seed(recipe.run.seed)
    units = units_of(config)
    ranges = split_evenly(costs_of(recipe, config), mesh.layout.pipeline)
    stage = Stage(HybridModel(config), [units[index] for index in ranges[mesh.pipeline.rank]])
    apply_tensor_parallel(stage.network, mesh.tensor)
    if mesh.sequence.size > 1:
        stage.sequence = apply_sequence_parallel(stage.network, mesh.sequence.group)
        stage.sequence.calls_layers = recipe.memory.activation_checkpointing
    stage.to(mesh.device).train()
    if recipe.memory.activation_checkpointing:
        checkpoint_layers(stage.network)
    elif mesh.sequence.size == 1 and recipe.parallel.zero < WHOLE_WEIGHTS:
        join_recurrences(stage.network, mesh.device)
    tied = Ring()
    if mesh.pipeline.size > 1:
        with_embedding = [number for number, own in enumerate(ranges) if any(units[i].tokens_pass for i in own)]
        tied = mesh.subset_of_pipeline(with_embedding)
    schedule = one_forward_one_backward if mesh.pipeline.size > 1 else one_by_one
    if recipe.parallel.zero and (mesh.layout.world_size > 1 or recipe.memory.offload_optimizer):
        from training.engines.zero import ZeroEngine

        return ZeroEngine(stage, mesh, recipe, dtype, tied, schedule)
    return LocalEngine(stage, mesh, recipe, dtype, tied, schedule)
