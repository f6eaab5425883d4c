"""Muon: momentum whose update is orthogonalised, matrices of one shape together.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, with the update scaled to the size of AdamW's
(Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2), as torch.optim.Muon computes it. That one walks
the matrices one by one: some 4,000 small kernels a step for the student, which is a fifth of a step on an H100. Here
equal shapes are stacked, and a stack is orthogonalised at once.

A parameter that holds several matrices, one below the other, is taken apart first: queries and keys, whose gradients
are small beside those of the values at the beginning, would otherwise hardly move.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.stacks import Stack, split_stack

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose iteration drives singular values towards 1 (Jordan et al.)."""
ITERATIONS = 5
RMS_OF_ADAMW = 0.2
EPSILON = 1e-7


class Matrix(NamedTuple):
    """One matrix of a parameter: views of its weights, gradient and momentum."""

    weight: Tensor
    gradient: Tensor
    momentum: Tensor


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum with decoupled weight decay, for matrices only.

    Args:
        parameters: each [R,C].
        stacked: the matrices that a parameter holds, one below the other; one where it is not named.
        lr: AdamW's would be alike.
        momentum: share of the old direction that is kept.
        weight_decay: share of a weight, times `lr`, that each step takes off.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        stacked: Mapping[Tensor, Stack] | None = None,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.stacked = dict(stacked or {})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim != 2:
                    raise ValueError(f"Muon takes matrices, got a parameter of shape {tuple(parameter.shape)}")
                split_stack(parameter, self.stacked.get(parameter, 1))

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            stacks: dict[torch.Size, list[Matrix]] = {}
            for parameter in group["params"]:
                for matrix in self._matrices(parameter):
                    stacks.setdefault(matrix.weight.shape, []).append(matrix)
            for shape, stack in stacks.items():
                self._update(stack, group, RMS_OF_ADAMW * max(shape) ** 0.5)

    def _update(self, stack: list[Matrix], group: dict, scale: float) -> None:
        weights, gradients, momenta = (list(each) for each in zip(*stack, strict=True))
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, momenta, group["momentum"])
        # Transposed ones would be added one by one.
        updates = orthogonalise(torch.stack(nesterov)).to(weights[0].dtype, memory_format=torch.contiguous_format)
        torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(weights, updates.unbind(0), alpha=-group["lr"] * scale)

    def _matrices(self, parameter: nn.Parameter) -> list[Matrix]:
        if parameter.grad is None:
            return []
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        stack = self.stacked.get(parameter, 1)
        views = (split_stack(tensor, stack) for tensor in (parameter, parameter.grad, state["momentum_buffer"]))
        return [Matrix(*each) for each in zip(*views, strict=True)]


def orthogonalise(matrices_NRC: Tensor) -> Tensor:
    """Each matrix' nearest (semi-)orthogonal one, roughly: bfloat16 [N,R,C]."""
    tall = matrices_NRC.shape[1] > matrices_NRC.shape[2]
    found = matrices_NRC.bfloat16()
    found = found.mT if tall else found
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp(min=EPSILON)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found.mT if tall else found
