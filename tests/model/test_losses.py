"""Losses against their plain definitions, what they ignore, and gradients that reach every parameter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import model.cross_entropy
from model.configuration import HybridConfig
from model.cross_entropy import IGNORE
from model.losses import (
    continuation_loss,
    masked_token_loss,
    router_loss,
    shift_right,
    span_loss,
    summary_loss,
)
from model.network import HybridModel

LENGTHS = torch.tensor([30, 9, 17])
LABELS = torch.tensor([[300, 400, 500, 2], [600, 2, IGNORE, IGNORE], [IGNORE] * 4])


@pytest.fixture(scope="module")
def ids() -> Tensor:
    rows = torch.randint(16, 32_000, (3, 30), generator=torch.Generator().manual_seed(5))
    rows[0, 3] = 400
    return rows


def all_losses(model: HybridModel, ids: Tensor) -> dict[str, Tensor]:
    memory = model.encode(ids, LENGTHS)
    positions, masked = torch.tensor([[1, 4], [2, 0], [5, 9]]), torch.tensor([[77, 88], [99, IGNORE], [66, 55]])
    contexts, answers = torch.tensor([[4, 30], [2, 9], [3, 17]]), torch.tensor([[6, 9], [-1, -1], [3, 4]])
    return {
        "masked": masked_token_loss(model, memory, positions, masked),
        "continuation": continuation_loss(model, memory, LENGTHS, LABELS),
        "summary": summary_loss(model, memory, LENGTHS, ids, LABELS),
        "span": span_loss(model, memory, LENGTHS, contexts, answers),
        "router": router_loss(model, memory, LENGTHS, torch.tensor([0, 2, IGNORE])),
    }


def test_gradients_reach_every_parameter(ids: Tensor) -> None:
    torch.manual_seed(6)
    model = HybridModel(HybridConfig.from_preset("nano"))
    losses = all_losses(model, ids)
    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    without = [name for name, each in model.named_parameters() if each.grad is None or not each.grad.any()]
    assert without == []
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@torch.no_grad()
def test_continuation_is_the_cross_entropy_of_the_decoders_logits(network: HybridModel, ids: Tensor) -> None:
    memory = network.encode(ids, LENGTHS)
    logits = network.generative_logits(memory, LENGTHS, shift_right(network, LABELS)).flatten(0, 1)
    expected = functional.cross_entropy(logits, LABELS.flatten(), ignore_index=IGNORE)
    found = continuation_loss(network, memory, LENGTHS, LABELS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_summary_is_the_mixtures_negative_log_likelihood(network: HybridModel, ids: Tensor) -> None:
    memory = network.encode(ids, LENGTHS)
    log_probs = network.pointer_log_probs(memory, LENGTHS, ids, shift_right(network, LABELS))
    expected = functional.nll_loss(log_probs.flatten(0, 1), LABELS.flatten(), ignore_index=IGNORE)
    torch.testing.assert_close(summary_loss(network, memory, LENGTHS, ids, LABELS), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_masked_tokens_are_scored_where_they_stand(network: HybridModel, ids: Tensor) -> None:
    memory = network.encode(ids, LENGTHS)
    labels = torch.full(ids.shape, IGNORE)
    labels[0, 1], labels[0, 4], labels[1, 2] = 77, 88, 99
    expected = functional.cross_entropy(network.lm_logits(memory).flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
    positions = torch.tensor([[1, 4], [2, 0], [0, 0]])
    found = masked_token_loss(network, memory, positions, torch.tensor([[77, 88], [99, IGNORE], [IGNORE] * 2]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_chunks_change_neither_loss_nor_gradient(
    network: HybridModel, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for chunk in (model.cross_entropy.CHUNK, 5):
        monkeypatch.setattr(model.cross_entropy, "CHUNK", chunk)
        loss = summary_loss(network, network.encode(ids, LENGTHS), LENGTHS, ids, LABELS)
        (gradient,) = torch.autograd.grad(loss, network.embedding.weight)
        found.append((loss, gradient))
    torch.testing.assert_close(found[0], found[1])


def test_what_follows_the_targets_is_ignored(network: HybridModel, ids: Tensor) -> None:
    memory = network.encode(ids, LENGTHS)
    longer = functional.pad(LABELS, (0, 3), value=IGNORE)
    torch.testing.assert_close(
        continuation_loss(network, memory, LENGTHS, longer), continuation_loss(network, memory, LENGTHS, LABELS)
    )
    assert shift_right(network, longer)[1].tolist() == [1, 600, 2, 0, 0, 0, 0]


def test_a_batch_without_targets_costs_nothing(network: HybridModel, ids: Tensor) -> None:
    memory = network.encode(ids, LENGTHS)
    nothing = torch.full((3, 4), IGNORE)
    losses = [
        continuation_loss(network, memory, LENGTHS, nothing),
        summary_loss(network, memory, LENGTHS, ids, nothing),
        masked_token_loss(network, memory, torch.zeros_like(nothing), nothing),
        router_loss(network, memory, LENGTHS, nothing[:, 0]),
    ]
    assert [loss.item() for loss in losses] == [0] * 4
    (gradient,) = torch.autograd.grad(sum(losses), network.embedding.weight)
    assert not gradient.any()
