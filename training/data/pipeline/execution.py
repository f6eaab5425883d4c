"""Runs a pipeline's stages in order: in processes here, on Ray, or as Slurm jobs; one datatrove executor a stage.

A task that was completed is not run again, so a run that was killed goes on with the same command. `run.json` says
what a folder was made from: another command is refused, not mixed in.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, redirect_stderr, suppress
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from loguru import logger
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from training.data.pipeline.settings import ExecutorSettings

LOOK_EVERY_S = 0.5
FINISH = "9-finish"
"""Every pipeline's last stage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Steps that run as a number of tasks, all of which end before the next stage begins."""

    name: str
    tasks: int
    steps: Sequence[PipelineStep]


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """Where a run keeps things."""

    root: Path

    @property
    def corpora(self) -> Path:
        """What the run is for: corpora in the layout that `trident data prepare` takes."""
        return self.root / "corpora"

    @property
    def dropped(self) -> Path:
        """What was left out, by stage and rule."""
        return self.root / "dropped"

    @property
    def counts(self) -> Path:
        """Documents read and written, by task."""
        return self.root / "counts"

    @property
    def is_complete(self) -> bool:
        """Whether the last stage has run."""
        return (self.log(FINISH) / "completions" / "00000").is_file()

    @property
    def work(self) -> Path:
        """What only the run itself needs; gone when it is complete."""
        return self.root / "work"

    def log(self, stage: str) -> Path:
        """datatrove's logs, statistics and completions of a stage."""
        return self.root / "logs" / stage

    def progress(self, stage: str) -> Path:
        """How far each running task is."""
        return self.work / "progress" / stage

    def claim(self, command: str, digest: str) -> None:
        """Note what this folder is made by, or check that it is the same.

        Raises ValueError where the folder holds another run, or something that is no run.
        """
        note = self.root / "run.json"
        mine = {"command": command, "digest": digest}
        if note.is_file():
            held = json.loads(note.read_text(encoding="utf-8"))
            if held != mine:
                raise ValueError(
                    f"{self.root} holds a run of `trident data {held.get('command')}` with other files or settings; "
                    "choose another --output, or delete it"
                )
            return
        if self.root.is_dir() and any(self.root.iterdir()):
            raise ValueError(f"{self.root} is not empty and was not made by `trident data {command}`")
        self.root.mkdir(parents=True, exist_ok=True)
        unfinished = note.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(mine) + "\n", encoding="utf-8")
        unfinished.replace(note)


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
            with _watched(bar, stage, folder), redirect_stderr(_Nowhere()):
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


class QuietExecutor(LocalPipelineExecutor):
    """datatrove's tasks in processes of ours: silent on the terminal, gone when the command that started them is.

    datatrove's own pool waits for ever where a worker was killed for memory, and leaves its manager process behind
    where the command itself was killed.
    """

    def __init__(self, *arguments: Any, lock: Path, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.lock = lock

    def run(self) -> None:
        """Run the tasks that are not completed.

        Raises what a task raised, and ValueError where a process died.
        """
        ranks = self.get_incomplete_ranks(range(self.tasks))
        if not ranks:
            return
        self.save_executor_as_json()
        if self.workers == 1:
            for rank in ranks:
                deepcopy(self).run_rank(rank)
            return
        context = get_context("forkserver")
        context.set_forkserver_preload([type(step).__module__ for step in self.pipeline])
        theirs, ours = context.Pipe(duplex=False)
        with ours, ProcessPoolExecutor(self.workers, context, _end_with_command, (self.lock, theirs)) as pool:
            waiting = [pool.submit(self.run_rank, rank) for rank in ranks]
            try:
                for done in as_completed(waiting):
                    done.result()
            except BrokenProcessPool as error:
                raise ValueError(
                    "a worker process was killed, perhaps for want of memory; try fewer workers"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def run_rank(self, rank: int) -> None:
        """Run one task; its messages go to its log file alone."""
        with redirect_stderr(_Nowhere()):
            self._run_for_rank(rank)


class _Nowhere:
    """A stream that keeps nothing; loguru and tqdm write to it."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def _end_with_command(lock: Path, command: Connection) -> None:
    """Share the workers' lock, and end this process when the other end of the pipe is closed: the command is gone.

    A worker that went on writing would meet the run that the user starts next.
    """
    held = lock.open("w")
    fcntl.flock(held, fcntl.LOCK_SH)

    def watch() -> None:
        with suppress(EOFError):
            command.recv()
        held.close()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


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
