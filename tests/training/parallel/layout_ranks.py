"""A recipe's first steps, in any layout."""

from __future__ import annotations

from itertools import islice

import torch
import torch.distributed as dist

from model.configuration import HybridConfig
from training.config import Recipe
from training.engine import make_engine
from training.parallel.layout import lay_out
from training.parallel.mesh import Mesh, make_mesh
from training.train import load_batches

RATE_FACTOR = 0.3
"""Of the learning rate, as in a run's warm-up: at the whole rate, a first step's rounding shows in single losses."""


def first_losses(recipe: Recipe, steps: int) -> list[dict[str, float]]:
    """The losses of the first steps, on the processes there are."""
    torch.set_num_threads(1)
    config = HybridConfig.from_preset(recipe.model.preset, **recipe.model.overrides)
    size = dist.get_world_size() if dist.is_initialized() else 1
    mesh = Mesh()
    if size > 1:
        mesh = make_mesh(lay_out(recipe, config, size), torch.device("cpu"))
    engine = make_engine(recipe, mesh)
    history = []
    for batch in islice(load_batches(recipe, mesh, 0), steps):
        history.append(engine.total(engine.forward_backward(batch)))
        engine.step(RATE_FACTOR)
    return history
