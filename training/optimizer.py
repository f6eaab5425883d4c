"""Muon for the matrices inside the layers, AdamW for everything else; or AdamW for all.

Muon orthogonalises the momentum of a matrix; embeddings, norms, biases, position tables and output layers of a few
rows are no such matrices. Its update has AdamW's size, so that both learning rates mean the same. Layouts that divide
matrices among processes use AdamW for all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from training.config import OptimizerSection
from training.muon import Muon
from training.stacks import stacked_matrices

SMALLEST_SIDE = 16
"""A matrix with fewer rows or columns is an output layer or a gate."""


class Optimizers:
    """The optimizer of a recipe, or the two of Muon's, behind the verbs of one.

    Args:
        model: whose parameters they train.
        section: the recipe's.
        fused: fused kernels, which CUDA has.
        scaler: of an fp16 run's loss; gradients are multiplied by its scale until the step.
        norm: the norm of the whole model's gradient, where other processes have parts of it.
    """

    def __init__(
        self,
        model: nn.Module,
        section: OptimizerSection,
        *,
        fused: bool,
        scaler: torch.amp.GradScaler | None = None,
        norm: Callable[[], Tensor] | None = None,
    ) -> None:
        self.clip = section.clip
        self.scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
        self.norm = norm or self._norm
        self.clips_together = section.kind == "adamw"
        matrices, others = split_parameters(model) if section.kind == "muon" else ([], trained_parameters(model))
        self.parameters = [*matrices, *others]
        self.rates = [section.learning_rate]
        self.optimizers: list[torch.optim.Optimizer] = [make_adamw(others, section, fused=fused)]
        if matrices:
            muon = Muon(
                matrices,
                stacked=stacked_matrices(model),
                lr=section.matrix_learning_rate,
                weight_decay=section.matrix_weight_decay,
            )
            self.optimizers.insert(0, muon)
            self.rates.insert(0, section.matrix_learning_rate)

    def step(self, factor: float) -> Tensor:
        """Clip, update with `factor` times the learning rates, forget the gradients; returns the gradient's norm.

        An fp16 run's step is left out where the gradient is not finite, and the scale lowered.
        """
        for optimizer in self.optimizers:
            if self.scaler.is_enabled():
                self.scaler.unscale_(optimizer)
        norm = self._clip_together() if self.clips_together else self._clip_each()
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            self.scaler.step(optimizer)
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        return norm

    def kept(self) -> dict[Tensor, dict[str, Tensor]]:
        """What is remembered of every parameter that has been stepped."""
        return {parameter: dict(state) for each in self.optimizers for parameter, state in each.state.items()}

    def restore(self, kept: Mapping[Tensor, dict[str, Tensor]]) -> None:
        """Take up what `kept` gave, for the parameters of the same names."""
        for optimizer in self.optimizers:
            state = optimizer.state_dict()
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state["state"] = {
                index: dict(kept[parameter]) for index, parameter in enumerate(parameters) if kept.get(parameter)
            }
            optimizer.load_state_dict(state)

    def _clip_together(self) -> Tensor:
        """All gradients by one number."""
        norm = self.norm()
        torch._foreach_mul_(self._gradients(), (self.clip / (norm + 1e-6)).clamp(max=1))
        return norm

    def _clip_each(self) -> Tensor:
        """Every gradient by itself: the span CRF's few parameters have gradients a hundred times those of the network.

        Clipped together, they would scale all others down in the steps that have questions.
        """
        gradients = self._gradients()
        norms = gradient_norms(gradients)
        torch._foreach_mul_(gradients, list((self.clip / (norms + 1e-6)).clamp(max=1).unbind()))
        return torch.linalg.vector_norm(norms)

    def _norm(self) -> Tensor:
        return torch.linalg.vector_norm(gradient_norms(self._gradients()))

    def _gradients(self) -> list[Tensor]:
        return [each.grad for each in self.parameters if each.grad is not None]


def gradient_norms(gradients: list[Tensor]) -> Tensor:
    """Of each tensor, float32. Summed in float64: in float32 a CPU's sum over an embedding is off by a thousandth."""
    return torch.stack(torch._foreach_norm(gradients, dtype=torch.float64)).float()


def make_adamw(parameters: list[nn.Parameter], section: OptimizerSection, *, fused: bool) -> torch.optim.AdamW:
    """AdamW, without decay for norms and biases."""
    groups: list[dict[str, Any]] = [
        {"params": [each for each in parameters if each.ndim >= 2]},
        {"params": [each for each in parameters if each.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups,
        lr=section.learning_rate,
        betas=(section.beta1, section.beta2),
        weight_decay=section.weight_decay,
        fused=fused,
    )


def trained_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Those that have gradients."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


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
