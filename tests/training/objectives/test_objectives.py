"""The list of objectives: what it says fits recipes, the network's line of units, and what a batch holds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from model.configuration import HybridConfig
from training.config import ObjectivesSection, Recipe
from training.data.batches import Batches
from training.engines.engine import Engine
from training.engines.making import make_engine
from training.objectives import losses
from training.objectives.losses import NAMES, OBJECTIVES, compute_losses, count_targets
from training.objectives.objective import UNITS, Objective, Read
from training.objectives.perturbation import perturb_embeddings
from training.parallel.mesh import Mesh
from training.parallel.stage import units_of
from training.train import load_batches


def test_every_objective_has_a_weight_in_recipes_and_a_unit_of_the_network() -> None:
    assert set(ObjectivesSection().weights) == set(NAMES)
    assert len(set(NAMES)) == len(OBJECTIVES)
    kinds = [unit.kind for unit in units_of(HybridConfig.from_preset("nano"))]
    assert [kind for kind in kinds if kind in UNITS] == list(UNITS)
    assert {each.unit for each in OBJECTIVES} <= set(UNITS)


def test_targets_are_counted_by_name_and_never_zero(recipe: Recipe) -> None:
    recipe.long.every, recipe.long.rows, recipe.long.source_tokens = 2, 2, 128
    batches = Batches(recipe)
    mixed, long = (count_targets(batches[step]) for step in (0, 1))
    assert mixed["qa"] == recipe.batch.qa_rows
    assert mixed["continuation"] > mixed["qa"]
    assert long["qa"] == long["summary"] == 1
    assert tuple(mixed) == NAMES


@pytest.fixture
def engine(recipe: Recipe) -> Engine:
    recipe.model.overrides = {"dropout": 0.0}
    return make_engine(recipe, Mesh(), torch.float32)


class MemorySize:
    """An objective of nobody's: the mean square of the memory of all rows."""

    name, unit, begins_with_transfer = "size", "memory", False

    def rows(self, batch: object) -> slice:
        return slice(0, 1)

    def count_targets(self, batch: object) -> int:
        return 1

    def loss(self, read: Read, targets: int | None) -> Tensor:
        return read.memory_BSD.square().mean()

    def loss_of_slice(self, *_: object) -> Iterator[None]:
        raise NotImplementedError


def test_an_objective_that_is_listed_is_minimised_and_told(
    engine: Engine, recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = next(iter(load_batches(recipe, Mesh(), 0))).micro_batches[0].batch
    before = compute_losses(engine.stage.network, batch)
    listed: tuple[Objective, ...] = (*OBJECTIVES, MemorySize())  # type: ignore[arg-type]
    monkeypatch.setattr(losses, "OBJECTIVES", listed)
    monkeypatch.setattr(losses, "NAMES", (*NAMES, "size"))
    after = compute_losses(engine.stage.network, batch)
    assert tuple(after) == (*NAMES, "size")
    assert all(torch.equal(after[name], loss) for name, loss in before.items())
    assert after["size"] > 0.5


def losses_of(engine: Engine, recipe: Recipe) -> Tensor:
    return engine.forward_backward(next(iter(load_batches(recipe, Mesh(), 0))))


def test_perturbed_embeddings_change_every_loss_and_have_a_gradient(engine: Engine, recipe: Recipe) -> None:
    plain = losses_of(engine, recipe)
    shift_D = torch.zeros(engine.stage.network.config.d_model, requires_grad=True)
    handle = perturb_embeddings(engine.stage.network, lambda embedded: embedded + shift_D)
    assert torch.equal(losses_of(engine, recipe), plain)
    gradient_D = shift_D.grad
    assert gradient_D is not None
    assert gradient_D.norm() > 0
    with torch.no_grad():
        shift_D += 0.05 * gradient_D / gradient_D.norm()
    worse = losses_of(engine, recipe)
    assert engine.weigh(worse) > engine.weigh(plain)
    assert (worse != plain).all()
    handle.remove()
    assert torch.equal(losses_of(engine, recipe), plain)
