"""A training run on one device.

    recipe ─▶ network, optimizers, batches ─▶ [ losses ─▶ backward ─▶ step ─▶ log ─▶ checkpoint ] … ─▶ weights

The batch of a step depends on the step's number alone, and a checkpoint holds all the rest, so a run that was killed
goes on by itself: start the same recipe again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader

import model.losses
from model.configuration import HybridConfig
from model.network import HybridModel
from training.checkpoint import Progress, load_checkpoint, save_checkpoint, seed_everything
from training.config import Recipe
from training.data.batches import Batch, Batches
from training.data.catalogue import licences, weights_licence
from training.data.shards import read_all_info
from training.objectives import compute_losses
from training.optimizer import Optimizers
from training.runlog import RunLog
from training.schedule import Schedule

WEIGHTS = "weights"
"""Folder of the trained network under the run's output, as `save_pretrained` writes it."""


def train(recipe: Recipe) -> Progress:
    """Run a recipe to its end, from its last checkpoint on; the weights are in `run.output/weights`.

    Raises ValueError where the data do not fit the recipe, or the output holds another recipe's run.
    """
    run, device = recipe.run, pick_device(recipe.run.device)
    claim_output(recipe)
    seed_everything(run.seed)
    torch.set_float32_matmul_precision("high")
    network = HybridModel(HybridConfig.from_preset(recipe.model.preset, **recipe.model.overrides))
    network.to(device)  # type: ignore[arg-type]
    network.train()
    optimizers = Optimizers(network, recipe.optimizer, fused=device.type == "cuda")
    progress = load_checkpoint(run.output, network, optimizers)
    if run.compile:
        compile_layers(network)
    schedule = Schedule(section=recipe.schedule)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16" and device.type == "cuda")
    resumed_s, started_s = progress.elapsed_s, time.perf_counter()

    with RunLog(run.output, tensorboard=run.tensorboard, steps_done=progress.step) as log:
        for batch in load_batches(recipe, progress.step, device):
            progress.elapsed_s = resumed_s + time.perf_counter() - started_s
            if schedule.is_over(progress.step, progress.elapsed_s):
                break
            factor = schedule.factor(progress.step, progress.elapsed_s)
            with autocast:
                losses = compute_losses(network, batch)
                loss = losses.weighted(recipe.objectives)
            loss.backward()
            norm = optimizers.step(factor)
            progress.step += 1
            progress.tokens += batch.tokens
            log.count(batch.tokens)
            if progress.step % run.log_every == 0:
                values = {"loss": loss, **losses._asdict(), "gradient_norm": norm}
                done = schedule.progress(progress.step, progress.elapsed_s)
                log.record(
                    progress.step,
                    done,
                    {name: float(value.detach()) for name, value in values.items()}
                    | {"rate_factor": factor, "tokens": progress.tokens, "elapsed_s": progress.elapsed_s},
                )
            if progress.step % run.checkpoint_every == 0:
                save_checkpoint(run.output, network, optimizers, progress)
    save_checkpoint(run.output, network, optimizers, progress)
    save_weights(recipe, network, progress)
    return progress


def pick_device(name: str) -> torch.device:
    """The device of a recipe. Raises ValueError where CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError('run.device is "cuda", and PyTorch finds no GPU: choose "auto" or "cpu"')
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def claim_output(recipe: Recipe) -> None:
    """Note the recipe in the run's folder. Raises ValueError where another network's run lies there."""
    path = recipe.run.output / "recipe.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before["model"] != recipe.as_dict()["model"]:
            raise ValueError(
                f"{recipe.run.output} holds a run of {before['model']}, the recipe asks for "
                f"{recipe.as_dict()['model']}: choose another run.output, or remove that folder"
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recipe.as_dict(), indent=2) + "\n", encoding="utf-8")


def load_batches(recipe: Recipe, first_step: int, device: torch.device) -> Iterator[Batch]:
    """Batches from a step on, for ever, built by worker processes and copied to the device ahead of their use."""
    workers = recipe.data.workers
    loader: DataLoader[Batch] = DataLoader(
        Batches(recipe),
        batch_size=None,
        sampler=range(first_step, 1 << 40),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),  # a loader draws a seed: from the global one, a resumed run's dropout would differ
    )
    for batch in loader:
        yield batch.to(device)


def compile_layers(network: HybridModel) -> None:
    """Compile what repeats: one graph serves all layers of a kind."""
    for layer in [*network.encoder.layers, *network.generative.layers, *network.pointer.layers]:
        layer.compile()
    model.losses.token_losses = torch.compile(model.losses.token_losses)


def save_weights(recipe: Recipe, network: HybridModel, progress: Progress) -> None:
    """The network, its tokenizer, and where both come from."""
    folder = recipe.run.output / WEIGHTS
    network.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(recipe.data.tokenizer / name, folder / name)
    text = json.dumps(provenance(recipe, progress), indent=2, ensure_ascii=False)
    (folder / "provenance.json").write_text(text + "\n", encoding="utf-8")


def provenance(recipe: Recipe, progress: Progress) -> dict[str, Any]:
    """What `trident export --provenance` writes into manifest and model card."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    sources = licences(info.source for info in read_all_info(recipe.data.folder))
    return {
        "license": weights_licence(sources),
        "training": {
            "device": device,
            "torch": str(torch.__version__),
            "steps": progress.step,
            "tokens": progress.tokens,
            "minutes": round(progress.elapsed_s / 60, 2),
            "precision": recipe.run.precision,
        },
        "sources": sources,
    }
