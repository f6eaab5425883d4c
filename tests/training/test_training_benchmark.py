"""What is measured is a training step, and what it says adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deploy.cli import app
from model.configuration import HybridConfig
from model.cross_entropy import IGNORE
from model.network import HybridModel
from training.benchmark import Workload, made_up_batch, measure
from training.config import ObjectivesSection
from training.kernels.compiled import compile_layers
from training.memory import checkpoint_layers
from training.objectives.losses import compute_losses

SMALL = Workload(preset="nano", rows=3, source_tokens=40, target_tokens=16, steps=2, warmup_steps=1)


def test_every_token_of_the_batch_is_computed() -> None:
    batch = made_up_batch(SMALL, 32_000)
    assert batch.source_BS.shape == (3, 40)
    assert batch.lengths_B.tolist() == [40, 40, 40]
    assert (batch.continuation_GT != IGNORE).all()
    assert batch.tokens == SMALL.tokens == 3 * 56
    assert all(len(set(row)) == 10 for row in batch.masked_PM.tolist())


def test_steps_learn_and_are_all_reported() -> None:
    one = measure(SMALL)
    more = measure(Workload(preset="nano", rows=3, source_tokens=40, target_tokens=16, steps=12, warmup_steps=1))
    assert len(more.step_s) == 12
    assert min(more.step_s) > 0
    assert more.loss < one.loss


@pytest.mark.slow
def test_compiled_layers_give_the_same_loss_and_gradients() -> None:
    torch.manual_seed(0)
    network = HybridModel(HybridConfig.from_preset("nano", dropout=0.0))
    batch = made_up_batch(SMALL, network.config.vocab_size)
    found = []
    for prepare in (lambda _: None, compile_layers):
        prepare(network)
        network.zero_grad()
        loss = compute_losses(network, batch).weighted(ObjectivesSection())
        loss.backward()
        gradients = {name: each.grad for name, each in network.named_parameters() if each.grad is not None}
        found.append((loss, gradients))
    (loss, gradients), (compiled_loss, compiled_gradients) = found
    torch.testing.assert_close(compiled_loss, loss)
    assert compiled_gradients.keys() == gradients.keys()
    for name, each in gradients.items():
        assert (compiled_gradients[name] - each).norm() <= 1e-4 * each.norm() + 1e-8, name


def test_checkpointed_layers_give_the_same_loss_and_gradients_and_keep_less() -> None:
    batch = made_up_batch(SMALL, 32_000)
    found = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        network = HybridModel(HybridConfig.from_preset("nano", pointer_layers=1))
        if checkpointed:
            checkpoint_layers(network)
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(1)  # of the dropout, which a second forward pass must draw again
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            losses = compute_losses(network.train(), batch).stacked()
        losses.sum().backward()
        gradients = {name: each.grad for name, each in network.named_parameters() if each.grad is not None}
        found.append((losses.detach(), gradients, sum(kept.values())))
    (plain, plain_gradients, plain_bytes), (again, again_gradients, again_bytes) = found
    torch.testing.assert_close(again, plain, rtol=0, atol=0)
    assert plain_gradients.keys() == again_gradients.keys()
    for name, gradient in plain_gradients.items():
        torch.testing.assert_close(again_gradients[name], gradient, msg=name)
    assert again_bytes < plain_bytes


def test_the_command_writes_what_it_measured(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    output = tmp_path / "made" / "nano.json"
    arguments = ["--preset", "nano", "--rows", "2", "--source-tokens", "32", "--target-tokens", "16", "--steps", "1"]
    answer = CliRunner().invoke(app, ["bench", "train", "--output", str(output), *arguments])
    assert answer.exit_code == 0, answer.output
    result = json.loads(output.read_text())
    assert (result["preset"], result["rows"], result["tokens_per_step"]) == ("nano", 2, 96)
    assert result["tokens_per_s"] == pytest.approx(96 / result["step_s"][0])
