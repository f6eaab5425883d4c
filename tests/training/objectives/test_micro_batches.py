"""Parts of a batch: their losses add up to the batch's, whatever the number of targets in each."""

from __future__ import annotations

import pytest
import torch

from model.configuration import HybridConfig
from model.network import HybridModel
from training.config import Recipe
from training.data.batches import Batch, Batches
from training.objectives.losses import NAMES, compute_losses, count_targets
from training.objectives.micro_batches import MicroBatch, split


@pytest.fixture(scope="module")
def network() -> HybridModel:
    torch.manual_seed(0)
    return HybridModel(HybridConfig.from_preset("nano", dropout=0.0))


@pytest.fixture
def batches(recipe: Recipe) -> Batches:
    """Two rows of every kind, and two long ones every other step."""
    rows = ("pretraining_rows", "instruction_rows", "qa_rows", "summary_rows")
    for name in rows:
        setattr(recipe.batch, name, 2)
    recipe.long.every, recipe.long.rows, recipe.long.source_tokens, recipe.long.target_tokens = 2, 2, 150, 24
    return Batches(recipe)


def losses_of(network: HybridModel, part: MicroBatch) -> torch.Tensor:
    return compute_losses(network, part.batch, part.targets).stacked()


@pytest.mark.parametrize("step", [0, 1], ids=["mixed", "long"])
@pytest.mark.parametrize(("data_size", "micro_batches"), [(2, 1), (1, 2)])
def test_the_losses_of_the_parts_add_up(
    batches: Batches, network: HybridModel, step: int, data_size: int, micro_batches: int
) -> None:
    batch = batches[step]
    parts = [
        part for rank in range(data_size) for part in split(batch, rank, data_size, micro_batches, all_heads=False)
    ]
    assert len({tuple(count_targets(part.batch).values()) for part in parts}) > 1, (
        "the test needs parts of unlike length"
    )
    with torch.no_grad():
        found = torch.stack([losses_of(network, part) for part in parts]).sum(0)
        expected = compute_losses(network, batch).stacked()
    torch.testing.assert_close(found, expected)
    assert sum(part.batch.tokens for part in parts) == batch.tokens
    assert all(part.targets == count_targets(batch) for part in parts)


def test_idle_rows_change_no_loss_and_give_every_parameter_a_gradient(batches: Batches, network: HybridModel) -> None:
    batch: Batch = batches[1]
    assert len(batch.context_Q2) == len(batch.summary_UT) == 0
    (plain,), (idle,) = (split(batch, 0, 1, 1, all_heads=each) for each in (False, True))
    expected, found = losses_of(network, plain), losses_of(network, idle)
    torch.testing.assert_close(found, expected)
    names = dict(zip(NAMES, found.tolist(), strict=True))
    assert names["qa"] == names["summary"] == 0
    network.zero_grad()
    expected.sum().backward()
    before = {name: each.grad for name, each in network.named_parameters()}
    assert before["pointer.gate.weight"] is None
    network.zero_grad()
    found.sum().backward()
    for name, each in network.named_parameters():
        assert each.grad is not None, name
        assert torch.isfinite(each.grad).all(), name
        torch.testing.assert_close(each.grad, torch.zeros_like(each) if before[name] is None else before[name])
    network.zero_grad()
