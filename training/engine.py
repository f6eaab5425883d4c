"""What a step does with a batch: losses, gradients, weights.

    forward_backward(batch)   losses of this process' parts, gradients added up over them
    step(factor)              gradients added up over processes, clipped, and a new set of weights

`LocalEngine` holds whole parameters and steps them itself: on one device, or repeated on several. ZeRO's engine, which
divides them, is `training/parallel/zero.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from model.configuration import HybridConfig
from model.network import HybridModel
from training.chain import split_evenly
from training.config import Recipe
from training.data.parts import Part, StepBatch
from training.kernels import join_recurrences
from training.memory import checkpoint_layers
from training.objectives import Losses
from training.optimizer import Optimizers, gradient_norms
from training.parallel.mesh import Mesh, Ring, add_up
from training.parallel.pipeline import one_forward_one_backward
from training.parallel.sequence import apply_sequence_parallel
from training.parallel.stage import Stage, costs_of, units_of
from training.parallel.tensor import Cut, apply_tensor_parallel, cuts_of, divided_parameters

LOWER_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
WHOLE_WEIGHTS = 3
"""ZeRO's stages below this one keep them on every process."""
WEIGHT = "weight"
"""The entry of a parameter's state that is the parameter itself."""


class Engine(ABC):
    """A stage of the network, and how it learns. `Stage` and `Mesh` say which part of it this process has.

    Args:
        stage: already cut to this process' part, on its device.
        mesh: the processes.
        recipe: the run's.
        dtype: of matrix products; the weights are kept in fp32 besides.
        tied: the stages that repeat the embedding.
    """

    def __init__(self, stage: Stage, mesh: Mesh, recipe: Recipe, dtype: torch.dtype, tied: Ring) -> None:
        self.stage, self.mesh, self.recipe, self.dtype, self.tied = stage, mesh, recipe, dtype, tied
        self.weights = torch.tensor(recipe.objectives.weights, device=mesh.device)
        self.parameters = {name: each for name, each in stage.network.named_parameters() if each.requires_grad}
        self.all_cuts: dict[str, Cut] = whole_cuts(stage) if mesh.tensor.size > 1 else {}
        self.cuts = {name: cut for name, cut in self.all_cuts.items() if name in self.parameters}
        divided = {id(each) for each in divided_parameters(stage)}
        self.counted = {
            name: (id(each) in divided or mesh.tensor.rank == 0) and not self._is_replica(name)
            for name, each in self.parameters.items()
        }
        """Whether this process speaks for a parameter, among those that hold one copy of the model."""

    def forward_backward(self, batch: StepBatch) -> Tensor:
        """Gradients of a batch's weighted loss; returns this process' share of each loss, [5]."""
        losses = one_forward_one_backward(self, batch) if self.mesh.pipeline.size > 1 else self._one_by_one(batch)
        self.add_up_gradients()
        return losses

    def _one_by_one(self, batch: StepBatch) -> Tensor:
        """All parts, forward and backward."""
        losses = torch.zeros(5, device=self.mesh.device)
        for number, part in enumerate(batch.parts):
            self.seed_dropout(batch.step, number)
            (found,) = self.run(part)
            losses += found.detach()
            self.backward(self.objective(found), is_last=number == len(batch.parts) - 1)
        return losses

    def weigh(self, losses: Tensor) -> Tensor:
        """The sum that is minimised, of losses [5]."""
        return (self.weights * losses).sum()

    def objective(self, losses: Tensor) -> Tensor:
        """What a part's backward pass begins with."""
        return self.weigh(losses)

    def total(self, losses: Tensor) -> dict[str, float]:
        """Losses of the whole batch by name, from every process' share; all processes call it."""
        found = add_up(losses.clone(), self.mesh.losses)
        names = dict(zip(Losses._fields, found.tolist(), strict=True))
        return {"loss": float(self.weigh(found)), **names}

    def seed_dropout(self, step: int, number: int) -> None:
        """Dropout is a function of the step, the part of the batch and the stage: it survives a kill, and recomputing.

        All processes of a tensor-parallel ring drop alike, for they repeat what is between their matrices.
        """
        mesh = self.mesh
        part = mesh.data.rank * self.recipe.batch.micro_batches + number
        place = ((step * (1 << 12) + part) * 64 + mesh.pipeline.rank) * 64 + mesh.sequence.rank
        torch.manual_seed((self.recipe.run.seed * 0x9E3779B97F4A7C15 + place) % (1 << 63))

    @property
    def recomputes(self) -> bool:
        """Whether a pipeline's stage computes its forward pass again rather than keep it (ZeRO-3 must)."""
        return False

    def run(self, part: Part, *received: Tensor) -> tuple[Tensor, ...]:
        """Losses [5], then what the next stage needs."""
        device = self.mesh.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            return self.forward(part, *received)

    @abstractmethod
    def forward(self, part: Part, *received: Tensor) -> tuple[Tensor, ...]:
        """The stage, through whatever wraps it."""

    @abstractmethod
    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add a part's gradients; `is_last` for the last part of the step."""

    @abstractmethod
    def add_up_gradients(self) -> None:
        """Over processes, after the last part, when no process waits for another's states."""

    @abstractmethod
    def step(self, factor: float) -> Tensor:
        """Clip, update with `factor` times the learning rates, forget the gradients; returns the gradient's norm."""

    @property
    @abstractmethod
    def loss_scale(self) -> float:
        """What gradients are multiplied by until the step: above 1 in fp16 only."""

    @abstractmethod
    def states(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Every parameter's name and state: its fp32 weight and what the optimizer remembers of it.

        Values are this tensor-parallel part's, whole over the data-parallel processes; all of those call it together.
        """

    @abstractmethod
    def restore(self, states: Mapping[str, dict[str, Tensor]], loss_scale: float) -> None:
        """Take up what `states` gave; `states[name]` is asked once for every parameter of this process."""

    def _is_replica(self, name: str) -> bool:
        """Whether an earlier stage has the same parameter."""
        return name == "embedding.weight" and self.mesh.pipeline.rank > 0


class LocalEngine(Engine):
    """Whole parameters and their optimizer on every data-parallel process."""

    def __init__(self, stage: Stage, mesh: Mesh, recipe: Recipe, dtype: torch.dtype, tied: Ring) -> None:
        super().__init__(stage, mesh, recipe, dtype, tied)
        self.scaler = make_scaler(mesh, enabled=dtype == torch.float16)
        fused = mesh.device.type == "cuda"
        self.optimizers = Optimizers(
            stage.network, recipe.optimizer, fused=fused, scaler=self.scaler, norm=self._global_norm
        )

    def forward(self, part: Part, *received: Tensor) -> tuple[Tensor, ...]:
        return self.stage(part, *received)

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        self.scaler.scale(loss).backward()

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


def whole_cuts(stage: Stage) -> dict[str, Cut]:
    """How the whole network's parameters are divided, by name."""
    with torch.device("meta"):
        return cuts_of(HybridModel(stage.network.config))


def pick_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Of matrix products. CPUs keep to fp32, whatever the recipe says: lower precisions are slower there."""
    return LOWER_PRECISIONS.get(precision, torch.float32) if device.type == "cuda" else torch.float32


def make_engine(recipe: Recipe, mesh: Mesh, dtype: torch.dtype) -> Engine:
    """The recipe's network, or this process' part of it, with its optimizer.

    Every process draws the whole network from the recipe's seed and keeps its part, so all layouts begin alike.
    """
    config = HybridConfig.from_preset(recipe.model.preset, **recipe.model.overrides)
    torch.manual_seed(recipe.run.seed)
    units = units_of(config)
    ranges = split_evenly(costs_of(recipe, config), mesh.layout.pipeline)
    stage = Stage(HybridModel(config), [units[index] for index in ranges[mesh.pipeline.rank]])
    apply_tensor_parallel(stage.network, mesh.tensor)
    if mesh.sequence.size > 1:
        stage.sequence = apply_sequence_parallel(stage.network, mesh.sequence.group)
        stage.sequence.calls_layers = recipe.memory.activation_checkpointing
    stage.to(mesh.device).train()
    if recipe.memory.activation_checkpointing:
        checkpoint_layers(stage.network)
    elif mesh.sequence.size == 1 and recipe.parallel.zero < WHOLE_WEIGHTS:
        join_recurrences(stage.network, mesh.device)
    tied = Ring()
    if mesh.pipeline.size > 1:
        with_embedding = [number for number, own in enumerate(ranges) if any(units[i].tokens_pass for i in own)]
        tied = mesh.subset_of_pipeline(with_embedding)
    if recipe.parallel.zero and (mesh.layout.world_size > 1 or recipe.memory.offload_optimizer):
        from training.parallel.zero import ZeroEngine

        return ZeroEngine(stage, mesh, recipe, dtype, tied)
    return LocalEngine(stage, mesh, recipe, dtype, tied)
