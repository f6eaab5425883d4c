"""The pipeline's schedule: one forward, one backward.

    stage 0   F0 F1 F2 B0 F3 B1 …        warm-up of as many forward passes as there are stages behind,
    stage 1      F0 F1 B0 F2 B1 …        then one of each in turn, then the backward passes that are left
    stage 2         F0 B0 F1 B1 …

(Narayanan et al. 2021, "Efficient Large-Scale Language Model Training on GPU Clusters", section 2.2). A stage's memory
holds as many micro-batches as there are stages behind it, however many there are in a step.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist

from training.engines.engine import Engine
from training.objectives.losses import NAMES
from training.objectives.micro_batches import MicroBatch, StepBatch
from training.parallel.mesh import Ring


class _Passed(NamedTuple):
    """A micro-batch between its forward and its backward pass."""

    number: int
    received: list[Tensor]
    results: tuple[Tensor, ...] | None
    """Losses and what was sent; None where the backward pass computes them again."""


def one_forward_one_backward(engine: Engine, batch: StepBatch) -> Tensor:
    """All micro-batches of a step through this process' stage, forward and backward; returns its losses [O]."""
    schedule = _Schedule(engine, batch)
    ring, count = engine.mesh.pipeline, len(batch.micro_batches)
    ahead = min(count, ring.size - 1 - ring.rank)
    for number in range(ahead):
        schedule.forward(number)
    for number in range(ahead, count):
        schedule.forward(number)
        schedule.backward()
    for _ in range(ahead):
        schedule.backward()
    schedule.finish()
    return schedule.losses


class _Schedule:
    """One step of one stage."""

    def __init__(self, engine: Engine, batch: StepBatch) -> None:
        self.engine, self.batch = engine, batch
        self.neighbours = Neighbours(engine.mesh.pipeline, engine.mesh.backward, engine.mesh.device)
        self.is_last_stage = engine.mesh.pipeline.rank == engine.mesh.pipeline.size - 1
        self.losses = torch.zeros(len(NAMES), device=engine.mesh.device)
        self.passed: deque[_Passed] = deque()

    def forward(self, number: int) -> None:
        """One micro-batch onward."""
        micro = self.batch.micro_batches[number]
        received = self.neighbours.receive(self.engine.stage.received_shapes(micro.batch), self.engine.dtype)
        again = self.engine.recomputes and not self.is_last_stage
        with torch.set_grad_enabled(not again):
            results = self._run(number, micro, received)
        self.losses += results[0].detach()
        self.neighbours.send(results[1:], self.engine.dtype)
        self.passed.append(_Passed(number, received, None if again else results))

    def backward(self) -> None:
        """The oldest micro-batch back.

        The gradients that come back enter as a sum of products, so that every stage has one number to derive.
        """
        number, received, results = self.passed.popleft()
        micro = self.batch.micro_batches[number]
        if results is None:
            results = self._run(number, micro, received)
        losses, *sent = results
        loss = self.engine.objective(losses)
        shapes = self.engine.stage.sent_shapes(micro.batch)
        scale = self.engine.loss_scale
        for state, gradient in zip(sent, self.neighbours.receive_back(shapes, self.engine.dtype), strict=True):
            loss = loss + (state.float() * (gradient.float() / scale)).sum()
        self.engine.backward(loss, is_last=number == len(self.batch.micro_batches) - 1)
        self.neighbours.send_back([torch.zeros_like(each) if each.grad is None else each.grad for each in received])

    def finish(self) -> None:
        """Until all that was sent has left."""
        self.neighbours.wait()

    def _run(self, number: int, micro: MicroBatch, received: list[Tensor]) -> tuple[Tensor, ...]:
        self.engine.seed_dropout(self.batch.step, number)
        return self.engine.run(micro, *received)


class Neighbours:
    """The stages before and behind. What is sent leaves while the sender goes on."""

    def __init__(self, forth: Ring, back: Ring, device: torch.device) -> None:
        self.forth, self.back, self.device = forth, back, device
        self.leaving: list[tuple[dist.Work, Tensor]] = []

    def receive(self, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
        """Hidden states from the stage before, which want gradients."""
        return [each.requires_grad_() for each in self._receive(shapes, dtype, self.forth, -1)]

    def send(self, states: tuple[Tensor, ...], dtype: torch.dtype) -> None:
        """Hidden states to the next stage."""
        self._send([each.detach().to(dtype) for each in states], self.forth, 1)

    def receive_back(self, shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
        """Gradients of what was sent."""
        return self._receive(shapes, dtype, self.back, 1)

    def send_back(self, gradients: list[Tensor]) -> None:
        """Gradients of what was received."""
        self._send(gradients, self.back, -1)

    def wait(self) -> None:
        """Until all has left."""
        for work, _ in self.leaving:
            work.wait()
        self.leaving.clear()

    def _send(self, tensors: list[Tensor], ring: Ring, step: int) -> None:
        for tensor in tensors:
            whole = tensor.contiguous()
            work = dist.isend(whole, ring.ranks[ring.rank + step], group=ring.group)
            assert work is not None
            self.leaving.append((work, whole))

    def _receive(self, shapes: list[tuple[int, ...]], dtype: torch.dtype, ring: Ring, step: int) -> list[Tensor]:
        found = [torch.empty(shape, dtype=dtype, device=self.device) for shape in shapes]
        for tensor in found:
            dist.recv(tensor, ring.ranks[ring.rank + step], group=ring.group)
        return found
