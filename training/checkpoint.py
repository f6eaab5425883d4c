"""Checkpoints: everything a run needs to go on as if it had never stopped, in the same layout or another.

Batches and dropout are functions of the step, so what is kept is the weights, the optimizer's state and the progress.
How they lie on disk is `training/parallel/checkpoint.py`'s.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.configuration import HybridConfig
from model.network import HybridModel
from training.digests import tokenizer_digest
from training.engines.engine import WEIGHT, Engine
from training.parallel.checkpoint import SEPARATOR, Checkpoint, CheckpointManifest, PartStates, Shard, write_checkpoint


@dataclass(kw_only=True, slots=True)
class Progress:
    """Where a run stands. The step is also the position in the data."""

    step: int = 0
    """Steps done."""
    elapsed_s: float = 0.0
    """Wall clock spent in them, over all resumptions."""
    tokens: int = 0
    """Source and target tokens seen, padding not counted."""


def save_checkpoint(run: Path, engine: Engine, progress: Progress) -> None:
    """Write a checkpoint beside the last one, then take its place: a kill at any moment leaves one whole.

    Raises OSError, on all processes, where one could not write.
    """
    mesh = engine.mesh

    def tensors() -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for number, (name, state) in enumerate(engine.states()):
            # What processes repeat is written once, each writing some of it.
            if engine.counted[name] and number % mesh.zero.size == mesh.zero.rank:
                found |= {name + SEPARATOR + entry: value.detach().cpu() for entry, value in state.items()}
        return found

    def manifest(shards: list[Shard]) -> CheckpointManifest:
        return CheckpointManifest(
            step=progress.step,
            progress=asdict(progress),
            loss_scale=engine.loss_scale,
            model=engine.stage.network.config.dimensions(),
            optimizer=engine.recipe.optimizer.kind,
            tokenizer=tokenizer_digest(engine.recipe.data.tokenizer),
            layout=str(mesh.layout),
            tensor_size=mesh.tensor.size,
            cuts={name: [cut.dimension, cut.blocks] for name, cut in engine.all_cuts.items()},
            shards=shards,
        )

    write_checkpoint(run, mesh, progress.step, tensors, manifest)


def load_checkpoint(run: Path, engine: Engine) -> Progress:
    """Restore the last checkpoint of a run, whatever layout wrote it; a new run's progress where there is none.

    Raises ValueError where it is damaged, or another network's, optimizer's or tokenizer's.
    """
    checkpoint = Checkpoint.latest(run)
    if checkpoint is None:
        return Progress()
    manifest = checkpoint.manifest
    # Checkpoints of before the field had as many key and value heads as heads.
    found = {"num_kv_heads": manifest.model.get("num_heads"), **manifest.model}
    _refuse_unlike(checkpoint.folder, "model", found, engine.stage.network.config.dimensions())
    kind = {"kind": engine.recipe.optimizer.kind}
    _refuse_unlike(checkpoint.folder, "optimizer", {"kind": manifest.optimizer}, kind)
    if manifest.tokenizer:
        wanted = tokenizer_digest(engine.recipe.data.tokenizer)
        _refuse_unlike(checkpoint.folder, "data", {"tokenizer": manifest.tokenizer}, {"tokenizer": wanted})
    checkpoint.verify(engine.mesh)
    engine.restore(PartStates(checkpoint, engine.mesh, engine.cuts), manifest.loss_scale)
    return Progress(**manifest.progress)  # type: ignore[arg-type]


def load_whole(run: Path) -> HybridModel:
    """The network of a run's last checkpoint, whole, on the CPU."""
    checkpoint = Checkpoint.latest(run)
    assert checkpoint is not None
    dimensions = dict(checkpoint.manifest.model)
    network = HybridModel(HybridConfig.from_preset(dimensions.pop("preset"), **dimensions))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(checkpoint.whole(name, WEIGHT))
    return network


def _refuse_unlike(folder: Path, what: str, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    unlike = [name for name in wanted if name != "dropout" and found.get(name) != wanted[name]]
    if unlike:
        name = unlike[0]
        raise ValueError(
            f"{folder} is a checkpoint with {what}.{name} = {found.get(name)!r}, the recipe has {wanted[name]!r}: "
            "choose another run.output, or the recipe that it was made with"
        )
