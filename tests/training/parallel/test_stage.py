"""Stages: every parameter is on one, the split is the best there is, and a chain of them is the network."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from model.configuration import HybridConfig
from model.network import HybridModel
from training.chain import split_evenly
from training.config import Recipe
from training.data.batches import Batches
from training.objectives.losses import compute_losses
from training.objectives.micro_batches import split
from training.parallel.stage import Stage, costs_of, owned_parts, units_of

NANO = HybridConfig.from_preset("nano", dropout=0.0)


def network() -> HybridModel:
    torch.manual_seed(0)
    return HybridModel(NANO)


def test_every_parameter_belongs_to_a_unit() -> None:
    owned = {name for unit in units_of(NANO) for name in owned_parts(unit)}
    for name, _ in network().named_parameters():
        assert any(name.startswith(part + ".") for part in owned), name


@example(costs=[1.00001, 2.0014546318985875, 82.67409517091559, 82.66905750055408, 83.0, 20.97490334584961], stages=3)
@given(costs=st.lists(st.floats(0.1, 100), min_size=3, max_size=9), stages=st.integers(1, 3))
def test_no_other_split_has_a_cheaper_dearest_stage(costs: list[float], stages: int) -> None:
    found = split_evenly(costs, stages)
    assert [index for part in found for index in part] == list(range(len(costs)))
    assert all(found)

    def dearest(bounds: tuple[int, ...]) -> float:
        return max(sum(costs[a:b]) for a, b in itertools.pairwise((0, *bounds, len(costs))))

    best = min(map(dearest, itertools.combinations(range(1, len(costs)), stages - 1)))
    assert dearest(tuple(part.start for part in found[1:])) == pytest.approx(best)


def test_the_guides_depth_is_split_into_stages_of_like_cost(even_recipe: Recipe) -> None:
    config = HybridConfig.from_preset("teacher", encoder_layers=64, decoder_layers=64)
    even_recipe.batch.source_tokens, even_recipe.batch.target_tokens = 512, 512
    costs = costs_of(even_recipe, config)
    shares = [sum(costs[index] for index in part) for part in split_evenly(costs, 8)]
    assert len(shares) == 8
    assert max(shares) < 1.35 * sum(shares) / 8


@pytest.mark.parametrize("cut", range(1, len(units_of(NANO))))
@pytest.mark.parametrize("step", [0, 3], ids=["mixed", "long"])
def test_a_chain_of_two_stages_is_the_network(even_recipe: Recipe, cut: int, step: int) -> None:
    """Losses, and the gradient of what the stages share, wherever the line is cut."""
    (part,) = split(Batches(even_recipe)[step], 0, 1, 1, all_heads=True)
    whole = network()
    expected = compute_losses(whole, part.batch, part.targets).stacked()
    expected.sum().backward()

    units = units_of(NANO)
    stages = [Stage(network(), units[:cut]), Stage(network(), units[cut:])]
    losses, *sent = stages[0](part)
    assert [tuple(each.shape) for each in sent] == stages[0].sent_shapes(part.batch)
    assert stages[0].sent_shapes(part.batch) == stages[1].received_shapes(part.batch)
    received = [each.detach().requires_grad_() for each in sent]
    more, *left = stages[1](part, *received)
    assert left == []
    torch.testing.assert_close(losses + more, expected)

    more.sum().backward()
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in received]
    torch.autograd.backward(
        [losses.sum(), *sent] if losses.requires_grad else sent,
        [None, *gradients] if losses.requires_grad else gradients,
    )
    gradient = sum(
        each.grad for stage in stages for name, each in stage.network.named_parameters() if name == "embedding.weight"
    )
    torch.testing.assert_close(gradient, whole.embedding.weight.grad, rtol=1e-4, atol=1e-6)
    assert sum(
        sum(p.numel() for n, p in s.network.named_parameters() if n != "embedding.weight") for s in stages
    ) == sum(p.numel() for n, p in whole.named_parameters() if n != "embedding.weight")
