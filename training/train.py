"""A training run, on one device or on many.

    recipe ─▶ mesh, engine, batches ─▶ [ forward, backward ─▶ step ─▶ log ─▶ checkpoint ] … ─▶ weights

The batch of a step depends on the step's number alone, and a checkpoint holds all the rest, so a run that was killed
goes on by itself: start the same recipe again, in the same layout or another.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch.utils.data import DataLoader

from model.configuration import HybridConfig
from model.tokenizer import TOKENIZER_FILES
from training.checkpoint import Progress, load_checkpoint, load_whole, save_checkpoint
from training.claim import claimed
from training.config import Recipe
from training.data.batches import Batch, Batches
from training.data.catalogue import licences, weights_licence
from training.data.shards import read_all_info
from training.engines.making import make_engine, pick_dtype
from training.interruption import InterruptedRun, Interruption, leave_group
from training.kernels.choice import choose_kernels
from training.kernels.compiled import compile_layers, refusing_to_fall_back
from training.objectives.micro_batches import MicroBatch, StepBatch, slice_of_source, split
from training.parallel.mesh import Mesh, join, local_rank, processes_started, speaks_for_all
from training.parallel.recipe_layout import lay_out
from training.precheck import check_recipe
from training.runlog import RunLog
from training.schedule import Schedule
from training.utilisation import peak_of_run, step_flops

PACE_LINES = 10
"""Lines of the metrics after which a run says how many steps its clock will let it take."""
WEIGHTS = "weights"
"""Folder of the trained network under the run's output, as `save_pretrained` writes it."""


def train(recipe: Recipe) -> Progress:
    """Run a recipe to its end, from its last checkpoint on; the weights are in `run.output/weights`.

    The processes that `torchrun` or `deepspeed` started run it together.

    Raises InterruptedRun after SIGTERM or SIGINT, once a checkpoint is written; ValueError where recipe, processes,
    data and the output's last checkpoint do not fit each other.
    """
    device = pick_device(recipe.run.device)
    config = HybridConfig.from_preset(recipe.model.preset, **recipe.model.overrides)
    layout = lay_out(recipe, config, processes_started())
    check_recipe(recipe, config)
    with (
        claimed(recipe.run.output, "training", "run.output") if speaks_for_all() else nullcontext(),
        join(layout, device, grouped=recipe.memory.offload_optimizer) as mesh,
    ):
        return run(recipe, mesh)


def run(recipe: Recipe, mesh: Mesh) -> Progress:
    """The run of one process among those of a mesh."""
    choose_kernels()
    output, schedule = recipe.run.output, Schedule(section=recipe.schedule)
    engine = make_engine(recipe, mesh, pick_dtype(recipe.run.precision, mesh.device))
    progress = load_checkpoint(output, engine)
    if recipe.run.compile:
        # What tensor ranks repeat stays alike only if they add in the same order.
        compile_layers(engine.stage.network, tuned=mesh.tensor.size == 1)
    resumed_s, started_s = progress.elapsed_s, time.perf_counter()
    # Only a run that ends by the clock needs one clock for all.
    agreed = mesh.agreed if recipe.schedule.max_minutes is not None else float

    log = RunLog(
        output,
        tensorboard=recipe.run.tensorboard,
        steps_done=progress.step,
        silent=not mesh.is_first,
        peak_flops=peak_of_run(mesh),
    )
    compiled = refusing_to_fall_back() if recipe.run.compile else nullcontext()
    with log, compiled, Interruption() as interruption:
        if mesh.is_first:
            note_recipe(recipe)
        log.tell(_beginning(recipe, mesh, progress))
        for batch in load_batches(recipe, mesh, progress.step):
            progress.elapsed_s = agreed(resumed_s + time.perf_counter() - started_s)
            if schedule.is_over(progress.step, progress.elapsed_s):
                break
            factor = schedule.factor(progress.step, progress.elapsed_s)
            losses = engine.forward_backward(batch)
            norm = engine.step(factor)
            progress.step += 1
            progress.tokens += batch.tokens
            log.count(batch.tokens, step_flops(engine.stage.network.config, batch, mesh))
            is_logged = progress.step % recipe.run.log_every == 0
            if is_logged:
                values = {**engine.total(losses), "gradient_norm": float(norm), "rate_factor": factor}
                _record(log, recipe, schedule, progress, values)
            stopped_by = interruption.agreed(mesh, now=is_logged)
            if stopped_by or progress.step % recipe.run.checkpoint_every == 0:
                save_checkpoint(output, engine, progress)
            if stopped_by:
                raise InterruptedRun(stopped_by, progress.step)
    save_checkpoint(output, engine, progress)
    if mesh.is_first:
        save_weights(recipe, progress)
    mesh.barrier()
    return progress


def _beginning(recipe: Recipe, mesh: Mesh, progress: Progress) -> str:
    """What a run is about to do."""
    device = torch.cuda.get_device_name(mesh.device) if mesh.device.type == "cuda" else "CPU"
    text = f"training {recipe.model.preset} on {mesh.layout.world_size} × {device}, into {recipe.run.output}"
    if progress.step:
        text += f", from step {progress.step} on"
    if recipe.run.compile:
        text += "; the first steps of each size of rows compile, which takes a minute or more"
    return text


def _record(log: RunLog, recipe: Recipe, schedule: Schedule, progress: Progress, values: dict[str, float]) -> None:
    """A line of the metrics; and once, of a run that ends by the clock, its pace."""
    values = {**values, "tokens": progress.tokens, "elapsed_s": progress.elapsed_s}
    step_s = log.record(progress.step, schedule.progress(progress.step, progress.elapsed_s), values)
    ends_by_clock = recipe.schedule.max_minutes is not None
    if ends_by_clock and step_s is not None and progress.step == PACE_LINES * recipe.run.log_every:
        log.tell(_pace(recipe, schedule, progress, step_s))


def _pace(recipe: Recipe, schedule: Schedule, progress: Progress, step_s: float) -> str:
    """How many steps the clock lets a run have, and whether that is enough for its mixture, which counts in steps."""
    steps = schedule.steps_expected(progress.step, progress.elapsed_s, step_s)
    text = f"at {step_s:.3g} s a step this run will have about {steps:,.0f} steps"
    if steps < recipe.mixture.end:
        text += (
            f", but mixture.end = {recipe.mixture.end:,}: the late weights will not be reached; "
            "lower mixture.begin and mixture.end, or raise schedule.max_minutes"
        )
    return text


def pick_device(name: str) -> torch.device:
    """The device of a recipe. Raises ValueError where CUDA is asked for and absent."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError('run.device is "cuda", and PyTorch finds no GPU: choose "auto" or "cpu"')
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", local_rank())


def note_recipe(recipe: Recipe) -> None:
    """Write the recipe into the run's folder."""
    path = recipe.run.output / "recipe.json"
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(json.dumps(recipe.as_dict(), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)


def load_batches(recipe: Recipe, mesh: Mesh, first_step: int) -> Iterator[StepBatch]:
    """This process' micro-batches of all batches from a step on, for ever.

    Worker processes build them and they are copied to the device ahead of their use.
    """
    workers = recipe.data.workers
    loader: DataLoader[Batch] = DataLoader(
        Batches(recipe),
        batch_size=None,
        sampler=range(first_step, 1 << 40),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        worker_init_fn=leave_group,
        pin_memory=mesh.device.type == "cuda",
        generator=torch.Generator(),  # a loader draws a seed: from the global one, a resumed run's dropout would differ
    )
    config = HybridConfig.from_preset(recipe.model.preset, **recipe.model.overrides)
    # Muon leaves alone what has no gradient; AdamW's steps are the same in all layouts.
    all_heads = recipe.optimizer.kind == "adamw"
    for step, batch in enumerate(loader, first_step):
        micro_batches = split(batch, mesh.data.rank, mesh.data.size, recipe.batch.micro_batches, all_heads=all_heads)
        if mesh.sequence.size > 1:
            micro_batches = [MicroBatch(_own_slice(each.batch, mesh, config), each.targets) for each in micro_batches]
        moved = [MicroBatch(each.batch.to(mesh.device), each.targets) for each in micro_batches]
        yield StepBatch(step, moved, batch.tokens)


def _own_slice(batch: Batch, mesh: Mesh, config: HybridConfig) -> Batch:
    return slice_of_source(batch, mesh.sequence.rank, mesh.sequence.size, config.recurrent_block)


def save_weights(recipe: Recipe, progress: Progress) -> None:
    """The last checkpoint's network in one piece, its tokenizer, and where both come from."""
    folder = recipe.run.output / WEIGHTS
    load_whole(recipe.run.output).save_pretrained(folder)
    for name in TOKENIZER_FILES:
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
