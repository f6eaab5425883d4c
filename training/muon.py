"""Muon: momentum whose update is orthogonalised, matrices of one shape together.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon, with the update scaled to the size of AdamW's
(Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2), as torch.optim.Muon computes it. That one walks
the matrices one by one: some 4,000 small kernels a step for the student, which is a fifth of a step on an H100. Here
equal shapes are stacked, and a stack is orthogonalised at once.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic whose iteration drives singular values towards 1 (Jordan et al.)."""
ITERATIONS = 5
RMS_OF_ADAMW = 0.2
EPSILON = 1e-7


class Muon(torch.optim.Optimizer):
    """Orthogonalised Nesterov momentum with decoupled weight decay, for matrices only."""

    def __init__(
        self, matrices: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(list(matrices), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.ndim != 2:
                    raise ValueError(f"Muon takes matrices, got a parameter of shape {tuple(matrix.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            stacks: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    stacks.setdefault(matrix.shape, []).append(matrix)
            for matrices in stacks.values():
                self._update(matrices, group)

    def _update(self, matrices: list[Tensor], group: dict) -> None:
        gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
        buffers = [self._momentum(matrix) for matrix in matrices]
        torch._foreach_lerp_(buffers, gradients, 1 - group["momentum"])
        nesterov = torch._foreach_lerp(gradients, buffers, group["momentum"])
        updates = orthogonalise(torch.stack(nesterov)).to(matrices[0].dtype).unbind(0)
        torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(matrices, updates, alpha=-group["lr"] * RMS_OF_ADAMW * max(matrices[0].shape) ** 0.5)

    def _momentum(self, matrix: Tensor) -> Tensor:
        state = self.state[matrix]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(matrix)
        return state["momentum_buffer"]


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
