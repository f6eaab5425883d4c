"""Muon for the matrices inside the layers, AdamW for everything else.

Muon orthogonalises the momentum of a matrix; embeddings, norms, biases, position tables and output layers of a few
rows are no such matrices. Its update has AdamW's size, so that both learning rates mean the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from training.config import OptimizerSection
from training.muon import Muon

SMALLEST_SIDE = 16
"""A matrix with fewer rows or columns is an output layer or a gate."""


class Optimizers:
    """Both optimizers behind the verbs of one."""

    def __init__(self, model: nn.Module, section: OptimizerSection, *, fused: bool) -> None:
        matrices, others = split_parameters(model)
        self.clip = section.clip
        self.parameters = [*matrices, *others]
        self.rates = (section.matrix_learning_rate, section.learning_rate)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in others if p.ndim >= 2]},
            {"params": [p for p in others if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizers: tuple[torch.optim.Optimizer, ...] = (
            Muon(matrices, lr=section.matrix_learning_rate, weight_decay=section.matrix_weight_decay),
            torch.optim.AdamW(
                groups,
                lr=section.learning_rate,
                betas=(section.beta1, section.beta2),
                weight_decay=section.weight_decay,
                fused=fused,
            ),
        )

    def step(self, factor: float) -> torch.Tensor:
        """Clip, update with `factor` times the learning rates, forget the gradients; returns the gradient's norm.

        Every tensor is clipped by itself: the span CRF's few parameters have gradients a hundred times those of the
        network, and would scale all others down with them in the steps that have questions.
        """
        gradients = [each.grad for each in self.parameters if each.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))
        torch._foreach_mul_(gradients, list((self.clip / (norms + 1e-6)).clamp(max=1).unbind()))
        norm = torch.linalg.vector_norm(norms)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state_dict(self) -> list[dict]:
        """Both states."""
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[dict]) -> None:
        """Restore both."""
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def split_parameters(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Matrices for Muon, and the rest."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = parameter.ndim == 2 and min(parameter.shape) >= SMALLEST_SIDE
        looked_up = "embedding" in name or "position" in name
        (matrices if inside and not looked_up else others).append(parameter)
    return matrices, others
