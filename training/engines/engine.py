"""What a step does with a batch: losses, gradients, weights.

    forward_backward(batch)   losses of this process' micro-batches, gradients added up over them
    step(factor)              gradients added up over processes, clipped, and a new set of weights

The one that holds whole parameters is `training/engines/local.py`; ZeRO's, which divides them,
`training/engines/zero.py`; `training/engines/making.py` chooses.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from model.network import HybridModel
from training.config import Recipe
from training.objectives.losses import NAMES
from training.objectives.micro_batches import MicroBatch, StepBatch
from training.objectives.penalty import Penalty
from training.parallel.mesh import Mesh, Ring, add_up
from training.parallel.stage import Stage
from training.parallel.tensor import Cut, cuts_of, divided_parameters

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
        schedule: in which order the micro-batches of a step go forward and backward.
    """

    def __init__(
        self, stage: Stage, mesh: Mesh, recipe: Recipe, dtype: torch.dtype, tied: Ring, schedule: Schedule
    ) -> None:
        self.stage, self.mesh, self.recipe, self.dtype, self.tied = stage, mesh, recipe, dtype, tied
        self.schedule = schedule
        self.penalties: list[Penalty] = []
        """Added to the objective once a step."""
        self.penalised: dict[str, Tensor] = {}
        """This process' share of each in the last step."""
        weights = recipe.objectives.weights
        self.weights = torch.tensor([weights[name] for name in NAMES], device=mesh.device)
        self.parameters = {name: each for name, each in stage.network.named_parameters() if each.requires_grad}
        self.all_cuts: dict[str, Cut] = whole_cuts(stage, mesh.tensor.size) if mesh.tensor.size > 1 else {}
        self.cuts = {name: cut for name, cut in self.all_cuts.items() if name in self.parameters}
        divided = {id(each) for each in divided_parameters(stage)}
        self.counted = {
            name: (id(each) in divided or mesh.tensor.rank == 0) and not self._is_replica(name)
            for name, each in self.parameters.items()
        }
        """Whether this process speaks for a parameter, among those that hold one copy of the model."""

    def forward_backward(self, batch: StepBatch) -> Tensor:
        """Gradients of a batch's weighted loss; returns this process' share of each loss, [O]."""
        losses = self.schedule(self, batch)
        self.add_up_gradients()
        self.penalised = {each.name: self._penalise(each) for each in self.penalties}
        return losses

    def _penalise(self, penalty: Penalty) -> Tensor:
        """Add a penalty's gradients; returns its value on the parameters that this process speaks for."""
        value = torch.zeros((), device=self.mesh.device)
        for name in self.parameters:
            weight = self.weight(name).detach().requires_grad_()
            found = penalty(name, weight)
            if found is not None:
                self.add_to_gradient(name, torch.autograd.grad(found, weight)[0] * self.loss_scale)
                value += found.detach() * self.counted[name]
        return value

    def weigh(self, losses: Tensor) -> Tensor:
        """The sum that is minimised, of losses [O]."""
        return (self.weights * losses).sum()

    def objective(self, losses: Tensor) -> Tensor:
        """What a micro-batch's backward pass begins with."""
        return self.weigh(losses)

    def total(self, losses: Tensor) -> dict[str, float]:
        """Losses of the whole batch by name, from every process' share; all processes call it."""
        found = add_up(losses.clone(), self.mesh.losses)
        names = dict(zip(NAMES, found.tolist(), strict=True))
        penalties = {name: float(add_up(value.clone(), self.mesh.model)) for name, value in self.penalised.items()}
        return {"loss": float(self.weigh(found)) + sum(penalties.values()), **names, **penalties}

    def seed_dropout(self, step: int, number: int) -> None:
        """Dropout is a function of the step, the micro-batch and the stage: it survives a kill, and recomputing.

        All processes of a tensor-parallel ring drop alike, for they repeat what is between their matrices.
        """
        mesh = self.mesh
        micro = mesh.data.rank * self.recipe.batch.micro_batches + number
        torch.manual_seed(seed_of(self.recipe.run.seed, step, micro, mesh.pipeline.rank, mesh.sequence.rank))

    @property
    def recomputes(self) -> bool:
        """Whether a pipeline's stage computes its forward pass again rather than keep it (ZeRO-3 must)."""
        return False

    def run(self, micro: MicroBatch, *received: Tensor) -> tuple[Tensor, ...]:
        """Losses [O], then what the next stage needs."""
        device = self.mesh.device.type
        with torch.autocast(device, self.dtype, enabled=self.dtype != torch.float32):
            return self.forward(micro, *received)

    @abstractmethod
    def forward(self, micro: MicroBatch, *received: Tensor) -> tuple[Tensor, ...]:
        """The stage, through whatever wraps it."""

    @abstractmethod
    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add a micro-batch's gradients; `is_last` for the last of the step."""

    @abstractmethod
    def add_up_gradients(self) -> None:
        """Over processes, after the last micro-batch, when no process waits for another's states."""

    @abstractmethod
    def weight(self, name: str) -> Tensor:
        """A parameter in fp32, whole over the data-parallel processes; all of those call it together."""

    @abstractmethod
    def add_to_gradient(self, name: str, addend: Tensor) -> None:
        """After `add_up_gradients`, the same on all processes that repeat or divide a parameter."""

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


def seed_of(*place: int) -> int:
    """A seed of 64 bits for a place of any coordinates: a digest of all, so that neighbours have nothing in common."""
    text = ",".join(map(str, place))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


Schedule = Callable[[Engine, StepBatch], Tensor]
"""All micro-batches of a step, forward and backward: returns this process' losses, [O]."""


def one_by_one(engine: Engine, batch: StepBatch) -> Tensor:
    """The `Schedule` of a process that has all stages: each micro-batch forward, then backward."""
    losses = torch.zeros(len(NAMES), device=engine.mesh.device)
    for number, micro in enumerate(batch.micro_batches):
        engine.seed_dropout(batch.step, number)
        (found,) = engine.run(micro)
        losses += found.detach()
        engine.backward(engine.objective(found), is_last=number == len(batch.micro_batches) - 1)
    return losses


def whole_cuts(stage: Stage, size: int) -> dict[str, Cut]:
    """How `size` processes divide the whole network's parameters, by name."""
    with torch.device("meta"):
        return cuts_of(HybridModel(stage.network.config), size)
