"""The engine that holds whole parameters and steps them itself: on one device, or repeated on several."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from training.config import Recipe
from training.engines.engine import WEIGHT, Engine, Schedule
from training.objectives.micro_batches import MicroBatch
from training.optimizer import Optimizers, gradient_norms
from training.parallel.mesh import Mesh, Ring, add_up
from training.parallel.stage import Stage


class LocalEngine(Engine):
    """Whole parameters and their optimizer on every data-parallel process."""

    def __init__(
        self, stage: Stage, mesh: Mesh, recipe: Recipe, dtype: torch.dtype, tied: Ring, schedule: Schedule
    ) -> None:
        super().__init__(stage, mesh, recipe, dtype, tied, schedule)
        self.scaler = make_scaler(mesh, enabled=dtype == torch.float16)
        fused = mesh.device.type == "cuda"
        self.optimizers = Optimizers(
            stage.network, recipe.optimizer, fused=fused, scaler=self.scaler, norm=self._global_norm
        )

    def forward(self, micro: MicroBatch, *received: Tensor) -> tuple[Tensor, ...]:
        return self.stage(micro, *received)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        self.scaler.scale(loss).backward()

    def weight(self, name: str) -> Tensor:
        return self.parameters[name]

    def add_to_gradient(self, name: str, addend: Tensor) -> None:
        parameter = self.parameters[name]
        parameter.grad = addend if parameter.grad is None else parameter.grad.add_(addend)

    def step(self, factor: float) -> Tensor:
        return self.optimizers.step(factor)

    @property
    def loss_scale(self) -> float:
        return self.scaler.get_scale()

    def states(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        kept = self.optimizers.kept()
        for name, parameter in self.parameters.items():
            yield name, {WEIGHT: parameter.detach(), **kept.get(parameter, {})}

    def restore(self, states: Mapping[str, dict[str, Tensor]], loss_scale: float) -> None:
        kept: dict[Tensor, dict[str, Tensor]] = {}
        for name, parameter in self.parameters.items():
            state = dict(states[name])
            parameter.data.copy_(state.pop(WEIGHT))
            kept[parameter] = state
        self.optimizers.restore(kept)
        if self.scaler.is_enabled():
            self.scaler.update(loss_scale)

    def add_up_gradients(self) -> None:
        """Over data-parallel processes in one flat buffer, and the embedding's over the stages that repeat it."""
        gradients = [each.grad for each in self.parameters.values() if each.grad is not None]
        if self.mesh.zero.size > 1:
            flat = torch.cat([each.flatten() for each in gradients])
            add_up(flat, self.mesh.zero)
            torch._foreach_copy_(
                gradients,
                [
                    part.view_as(each)
                    for part, each in zip(flat.split([g.numel() for g in gradients]), gradients, strict=True)
                ],
            )
        if self.tied.size > 1:
            embedding = self.parameters["embedding.weight"].grad
            assert embedding is not None
            add_up(embedding, self.tied)

    def _global_norm(self) -> Tensor:
        """Of the whole model's gradient."""
        gradients = [
            each.grad for name, each in self.parameters.items() if self.counted[name] and each.grad is not None
        ]
        squares = gradient_norms(gradients).square().sum()
        return add_up(squares, self.mesh.model).sqrt()


def make_scaler(mesh: Mesh, *, enabled: bool) -> torch.amp.GradScaler:
    """Loss scaling for fp16; all processes of one copy of the model skip the same steps."""
    if mesh.model.group is None:
        return torch.amp.GradScaler(mesh.device.type, enabled=enabled)
    from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

    return ShardedGradScaler(mesh.device.type, process_group=mesh.model.group, enabled=enabled)
