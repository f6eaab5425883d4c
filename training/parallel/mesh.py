"""The processes of a run, arranged in four dimensions, and a process group for every one of them.

    rank = ((pipeline · data + data rank) · sequence + sequence rank) · tensor + tensor rank

Neighbours in rank are neighbours in the machine: tensor parallelism, which talks most, is innermost; the pipeline,
which talks least, crosses machines.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from training.layout import Layout

DIMENSIONS = ("pipeline", "data", "sequence", "tensor")
"""Outermost first."""
TIMEOUT = timedelta(minutes=10)
"""For the slowest process to answer: writing a checkpoint, or computing a step."""

Group = dist.ProcessGroup


@dataclass(frozen=True, slots=True)
class Ring:
    """This process among those that differ from it in some dimensions only."""

    rank: int = 0
    size: int = 1
    group: Group | None = None
    """None where a process is alone."""
    ranks: tuple[int, ...] = (0,)
    """Global ranks, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mesh:
    """This process' place among all. Without process groups, a single process."""

    layout: Layout = field(default_factory=Layout)
    rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tensor: Ring = Ring()
    sequence: Ring = Ring()
    data: Ring = Ring()
    pipeline: Ring = Ring()
    zero: Ring = Ring()
    """Data and sequence: those that hold the same parameters."""
    model: Ring = Ring()
    """Tensor and pipeline: those that hold one copy of the model."""
    losses: Ring = Ring()
    """All but tensor: those whose losses add up."""
    backward: Ring = Ring()
    """The pipeline again, for gradients: what goes forth and what comes back must not wait for each other."""
    alone: Group | None = None
    """This process' own group, for libraries that want one where nobody else belongs."""

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait for all processes."""
        if self.layout.world_size > 1:
            dist.barrier()

    def agreed(self, value: float) -> float:
        """The first process' value."""
        if self.layout.world_size == 1:
            return value
        told = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(told, 0)
        return float(told)

    def all_of(self, value: object) -> list:
        """Every process' value."""
        if self.layout.world_size == 1:
            return [value]
        found: list = [None] * self.layout.world_size
        dist.all_gather_object(found, value)
        return found

    def subset_of_pipeline(self, stages: Sequence[int]) -> Ring:
        """The ring of this process' peers on some stages; every process calls it, in the same order."""
        mine = Ring()
        for ranks in _ranks_along(self.layout, ("pipeline",)):
            chosen = tuple(ranks[stage] for stage in stages)
            ring = _ring(chosen, self.rank)
            mine = ring or mine
        return mine


def processes_started() -> int:
    """How many processes `torchrun` or `deepspeed` started with this one; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def speaks_for_all() -> bool:
    """Whether this is the first of the processes that were started."""
    return os.environ.get("RANK", "0") == "0"


def local_rank() -> int:
    """This process' number on its machine, which is its GPU's."""
    return int(os.environ.get("LOCAL_RANK", "0"))


@contextmanager
def join(layout: Layout, device: torch.device, *, grouped: bool) -> Iterator[Mesh]:
    """The mesh of all processes that run this layout, for the length of a run.

    Args:
        layout: sizes of the dimensions.
        device: this process' own, on which it computes.
        grouped: make process groups for a single process too, for libraries that want them.
    """
    if layout.world_size == 1 and not grouped:
        yield Mesh(layout=layout, device=device)
        return
    options: dict[str, Any] = {"timeout": TIMEOUT}
    if "RANK" not in os.environ:
        options |= {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **options)
    try:
        yield make_mesh(layout, device)
    finally:
        dist.destroy_process_group()


def make_mesh(layout: Layout, device: torch.device) -> Mesh:
    """The mesh on the process group that exists. Raises ValueError where that has another size."""
    if dist.get_world_size() != layout.world_size:
        raise ValueError(f"{layout} is for {layout.world_size} processes, not for {dist.get_world_size()}")
    rank = dist.get_rank()
    rings: dict[str, Ring] = {}
    for name, dimensions in {
        "tensor": ("tensor",),
        "sequence": ("sequence",),
        "data": ("data",),
        "pipeline": ("pipeline",),
        "zero": ("data", "sequence"),
        "model": ("pipeline", "tensor"),
        "losses": ("pipeline", "data", "sequence"),
        "backward": ("pipeline",),
    }.items():
        for ranks in _ranks_along(layout, dimensions):
            ring = _ring(ranks, rank)
            if ring is not None:
                rings[name] = ring
    alone = dist.new_group([rank], use_local_synchronization=True)
    return Mesh(layout=layout, rank=rank, device=device, alone=alone, **rings)


def _ring(ranks: tuple[int, ...], rank: int) -> Ring | None:
    """A new group of `ranks`, which every process has to make; None to those that are not in it."""
    group = dist.new_group(list(ranks), timeout=TIMEOUT) if len(ranks) > 1 else None
    return Ring(ranks.index(rank), len(ranks), group, ranks) if rank in ranks else None


def _ranks_along(layout: Layout, dimensions: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """All sets of ranks that differ in `dimensions` only, each in the order of ranks."""
    sizes = [getattr(layout, name) for name in DIMENSIONS]
    ranks = torch.arange(layout.world_size).view(sizes)
    along = [DIMENSIONS.index(name) for name in sorted(dimensions, key=DIMENSIONS.index)]
    across = [index for index in range(len(DIMENSIONS)) if index not in along]
    for place in itertools.product(*(range(sizes[index]) for index in across)):
        chosen: list[int | slice] = [slice(None)] * len(DIMENSIONS)
        for index, value in zip(across, place, strict=True):
            chosen[index] = value
        yield tuple(ranks[tuple(chosen)].flatten().tolist())


def add_up(values: Tensor, ring: Ring) -> Tensor:
    """The sum over a ring, in place."""
    if ring.group is not None:
        dist.all_reduce(values, group=ring.group)
    return values
