"""A penalty on parameters counts once a step, whatever the layout, and pulls where its gradient says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing

from tests.training.parallel.conftest import WriteRecipe
from training.config import Recipe, load_recipe
from training.engines.engine import Engine
from training.engines.making import make_engine
from training.layout import Layout
from training.parallel.mesh import Mesh, make_mesh
from training.train import load_batches

LAYOUTS = {
    "data": Layout(data=2),
    "ZeRO-2": Layout(data=2, zero=2),
    "ZeRO-3": Layout(data=2, zero=3),
    "tensor": Layout(tensor=2),
    "pipeline": Layout(pipeline=2),
}
STEPS = 2


class PullToAnchor:
    """Half the squared distance of some parameters from 1, by a strength: the shape that later penalties have."""

    name = "pull"
    strength = 0.01

    def __call__(self, parameter: str, weight: Tensor) -> Tensor | None:
        if parameter != "embedding.weight" and not parameter.startswith("generative.layers.0.feed_forward"):
            return None
        return self.strength / 2 * (weight - 1).square().sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_its_gradient_is_added_and_its_value_told(even_recipe: Recipe, dtype: torch.dtype) -> None:
    plain, penalised = (make_engine(even_recipe, Mesh(), dtype) for _ in range(2))
    penalised.penalties.append(PullToAnchor())
    batch = next(iter(load_batches(even_recipe, Mesh(), 0)))
    told = [engine.total(engine.forward_backward(batch)) for engine in (plain, penalised)]
    pulled = 0
    for name, parameter in penalised.parameters.items():
        expected = plain.parameters[name].grad
        assert parameter.grad is not None
        assert expected is not None
        if PullToAnchor()(name, parameter) is not None:
            pulled += 1
            expected = expected + PullToAnchor.strength * (parameter.detach() - 1) * plain.loss_scale
        torch.testing.assert_close(parameter.grad, expected)
    assert pulled > 2
    assert told[1]["pull"] > 1
    assert told[1]["loss"] == pytest.approx(told[0]["loss"] + told[1]["pull"])
    assert "pull" not in told[0]


def test_every_layout_is_penalised_alike(write_recipe: WriteRecipe, tmp_path: Path) -> None:
    multiprocessing.spawn(_compare, args=(tmp_path / "meeting", write_recipe("run")), nprocs=2)


def _compare(rank: int, meeting: Path, path: Path) -> None:
    """Steps of one process of two under each layout, and of a single one."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    expected = _told(make_engine(load_recipe(path), Mesh(), torch.float32), load_recipe(path))
    for name, layout in LAYOUTS.items():
        recipe = load_recipe(path)
        recipe.parallel.zero, recipe.parallel.whole_below = layout.zero, 0
        found = _told(make_engine(recipe, make_mesh(layout, torch.device("cpu")), torch.float32), recipe)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
    torch.distributed.destroy_process_group()


def _told(engine: Engine, recipe: Recipe) -> Tensor:
    """Losses, penalty and the gradient's norm at each step."""
    engine.penalties.append(PullToAnchor())
    told = []
    for batch in load_batches(recipe, engine.mesh, 0):
        values = engine.total(engine.forward_backward(batch)).values()
        told.append([*values, float(engine.step(1.0))])
        if len(told) == STEPS:
            break
    return torch.tensor(told)
