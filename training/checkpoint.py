"""Checkpoints: everything a run needs to go on as if it had never stopped, replaced atomically."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.optimizer import Optimizers

FILE = "checkpoint.pt"


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where a run stands. The step is also the position in the data."""

    step: int = 0
    """Steps done."""
    elapsed_s: float = 0.0
    """Wall clock spent in them, over all resumptions."""
    tokens: int = 0
    """Source and target tokens seen, padding not counted."""


def save_checkpoint(folder: Path, model: nn.Module, optimizers: Optimizers, progress: Progress) -> None:
    """Write a checkpoint beside the last one, then take its place: a kill at any moment leaves one whole."""
    state = {
        "model": model.state_dict(),
        "optimizers": optimizers.state_dict(),
        "progress": {"step": progress.step, "elapsed_s": progress.elapsed_s, "tokens": progress.tokens},
        "random": _random_state(),
    }
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / (FILE + ".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(folder / FILE)


def load_checkpoint(folder: Path, model: nn.Module, optimizers: Optimizers) -> Progress:
    """Restore the last checkpoint of `folder`; a new run's progress where there is none."""
    path = folder / FILE
    if not path.is_file():
        return Progress()
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state["model"])
    optimizers.load_state_dict(state["optimizers"])
    _restore_random_state(state["random"])
    return Progress(**state["progress"])


def seed_everything(seed: int) -> None:
    """Seed all generators that training draws from."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _random_state() -> dict[str, Any]:
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _restore_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
