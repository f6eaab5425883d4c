"""Tasks of several processes that share a gloo group."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.forks import Forks

Task = Callable[..., Any]


def on_ranks(size: int, task: Task, *arguments: Any) -> list[Any]:
    """What `task(*arguments)` returns in each of `size` processes; AssertionError with the output of one that fails."""
    with tempfile.TemporaryDirectory() as folder:
        with Forks(_on_rank, folder, task, arguments, size=size) as processes:
            processes.finish()
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(size)]


def _on_rank(folder: str, task: Task, arguments: tuple[Any, ...]) -> None:
    """One process: meet the others, and leave the result in a file."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    torch.save(task(*arguments), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
