"""Runs a pipeline's stages in order: in processes here, on Ray, or as Slurm jobs; one datatrove executor a stage.

A task that was completed is not run again, so a run that was killed goes on with the same command.
"""

from __future__ import annotations

import fcntl
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

from datatrove.executor import RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from training.data.pipeline.run_folder import RunFolder
from training.data.pipeline.settings import ExecutorSettings
from training.data.pipeline.workers import Nowhere, QuietExecutor

LOOK_EVERY_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Steps that run as a number of tasks, all of which end before the next stage begins."""

    name: str
    tasks: int
    steps: Sequence[PipelineStep]


def run_stages(stages: Sequence[Stage], folder: RunFolder, settings: ExecutorSettings) -> bool:
    """Run the stages; True when all is done, False where jobs were submitted that will do it.

    Raises what a task raised, and ValueError where another process runs in the same folder.
    """
    logger.remove()  # datatrove's messages go to the tasks' log files
    if settings.kind == "slurm":
        _submit(stages, folder, settings)
        return False
    with _alone(folder.root), _progress() as bar:
        if settings.kind == "ray":
            _connect(settings)
        for stage in stages:
            with _watched(bar, stage, folder), redirect_stderr(Nowhere()):
                _executor(stage, folder, settings).run()
            _check_complete(stage, folder)
    return True


def _executor(stage: Stage, folder: RunFolder, settings: ExecutorSettings) -> PipelineExecutor:
    logs, steps = str(folder.log(stage.name).absolute()), list(stage.steps)
    if settings.kind == "ray":
        return RayPipelineExecutor(
            steps, tasks=stage.tasks, workers=settings.workers, logging_dir=logs, mem_per_cpu_gb=settings.memory_gb
        )
    workers = min(settings.workers, stage.tasks)
    return QuietExecutor(steps, tasks=stage.tasks, workers=workers, logging_dir=logs, lock=folder.root / "workers.lock")


def _submit(stages: Sequence[Stage], folder: RunFolder, settings: ExecutorSettings) -> None:
    before: SlurmPipelineExecutor | None = None
    for stage in stages:
        before = SlurmPipelineExecutor(
            list(stage.steps),
            tasks=stage.tasks,
            workers=settings.workers,
            time=settings.slurm_time,
            partition=settings.slurm_partition,
            mem_per_cpu_gb=settings.memory_gb,
            env_command=settings.slurm_setup or None,
            job_name=f"trident-{stage.name}",
            logging_dir=str(folder.log(stage.name).absolute()),
            mail_type="NONE",
            depends=before,
        )
    if before is not None:
        before.run()


def _connect(settings: ExecutorSettings) -> None:
    import ray

    if not ray.is_initialized():
        ray.init(address=None if settings.ray_address == "local" else settings.ray_address, log_to_driver=False)


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the folder's lock, and wait for workers of a killed run to be gone."""
    with (root / "run.lock").open("w") as run, (root / "workers.lock").open("w") as workers:
        try:
            fcntl.lockf(run, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another process is at work in {root}") from error
        fcntl.flock(workers, fcntl.LOCK_EX)
        fcntl.flock(workers, fcntl.LOCK_UN)
        yield


def _progress() -> Progress:
    # Taken now: standard error is redirected while datatrove runs.
    console = Console(file=sys.stderr)
    return Progress(TextColumn("{task.description:<20}"), BarColumn(), TimeElapsedColumn(), console=console)


@contextmanager
def _watched(bar: Progress, stage: Stage, folder: RunFolder) -> Iterator[None]:
    """Move the bar with the completed tasks and the running ones' progress files."""
    task = bar.add_task(stage.name, total=stage.tasks)
    over = threading.Event()

    def watch() -> None:
        while not over.wait(LOOK_EVERY_S):
            bar.update(task, completed=_done(stage, folder))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        bar.update(task, completed=stage.tasks)
    finally:
        over.set()
        watcher.join()


def _done(stage: Stage, folder: RunFolder) -> float:
    completed = {path.name for path in (folder.log(stage.name) / "completions").glob("*")}
    running = 0.0
    for path in folder.progress(stage.name).glob("*"):
        if path.name not in completed:
            try:
                running += float(path.read_text() or 0)
            except OSError:
                continue
    return len(completed) + running


def _check_complete(stage: Stage, folder: RunFolder) -> None:
    """Ray reports some failures in its logs alone."""
    completed = len(list((folder.log(stage.name) / "completions").glob("*")))
    if completed < stage.tasks:
        logs = folder.log(stage.name) / "logs"
        raise ValueError(f"{stage.name}: {stage.tasks - completed} of {stage.tasks} tasks failed; see {logs}")
