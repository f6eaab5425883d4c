"""SIGTERM and Ctrl-C: the run saves where it is, says so, and the same command ends as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.forks import Forks
from tests.training.parallel.launching import kill, launch, metrics_of, start, start_torchrun
from training.parallel.checkpoint import Checkpoint

STEPS = 30
DEADLINE_S = 120
SAVED = "{}: step {} is saved, the same command goes on from there"


Started = subprocess.Popen[str] | Forks


def signalled(process: Started, recipe: Path, step: int, send: Callable[[Started], None]) -> tuple[int | None, str]:
    """Signal a run once a step is logged, and wait for its end: its status and what it printed."""
    path, deadline_s = recipe.parent / "run/metrics.jsonl", time.monotonic() + DEADLINE_S
    try:
        while not path.is_file() or f'"step": {step},' not in path.read_text():
            assert process.poll() is None, "the run ended before it could be signalled"
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
        send(process)
        told = process.communicate(timeout=DEADLINE_S)[0]
    finally:
        kill(process)
    return process.returncode, told


def saved_step(run: Path) -> int:
    saved = Checkpoint.latest(run)
    assert saved is not None
    return saved.manifest.step


def with_workers(recipe: Path, workers: int) -> None:
    recipe.write_text(recipe.read_text().replace("[batch]", f"workers = {workers}\n\n[batch]"))


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGTERM, 0), (signal.SIGINT, 2)], ids=str)
def test_a_signalled_run_saves_its_step_and_goes_on_from_it(
    number: signal.Signals, workers: int, finished_run: Path, recipe_file: Path, tmp_path: Path
) -> None:
    with_workers(recipe_file, workers)
    run = tmp_path / "run"
    status, told = signalled(start(recipe_file, 1), recipe_file, 7, lambda process: process.send_signal(number))
    assert status == 128 + number, told[-4_000:]
    step = saved_step(run)
    assert 7 <= step < STEPS
    assert metrics_of(run)[-1]["step"] == step
    assert told.splitlines()[-1] == SAVED.format(number.name, step)
    assert not (run / "weights").exists()

    assert f", from step {step} on" in launch(recipe_file, 1)
    found, expected = (load_file(each / "weights/model.safetensors") for each in (run, finished_run))
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert [line["loss"] for line in metrics_of(run)] == [line["loss"] for line in metrics_of(finished_run)]


def test_processes_that_build_batches_outlast_a_signal_to_the_whole_group(recipe_file: Path, tmp_path: Path) -> None:
    with_workers(recipe_file, 2)
    status, told = signalled(
        start(recipe_file, 1), recipe_file, 4, lambda process: os.killpg(process.pid, signal.SIGINT)
    )
    assert status == 128 + signal.SIGINT, told[-4_000:]
    assert told.splitlines()[-1] == SAVED.format("SIGINT", saved_step(tmp_path / "run"))


def test_a_run_that_fails_takes_the_processes_that_build_batches_with_it(recipe_file: Path) -> None:
    building: list[psutil.Process] = []

    def lose_one(process: Started) -> None:
        building.extend(psutil.Process(process.pid).children())
        building[0].kill()

    with_workers(recipe_file, 2)
    status, told = signalled(start(recipe_file, 1), recipe_file, 4, lose_one)
    assert status == 1
    assert "is killed by signal: Killed" in told
    assert len(building) >= 2
    assert psutil.wait_procs(building, timeout=5)[1] == []


def test_processes_of_one_run_end_at_one_step(recipe_file: Path, tmp_path: Path) -> None:
    text = recipe_file.read_text().replace("pretraining_rows = 3", "pretraining_rows = 4")
    recipe_file.write_text(text.replace("instruction_rows = 1", "instruction_rows = 2"))
    _, told = signalled(
        start_torchrun(recipe_file, 2), recipe_file, 7, lambda process: process.send_signal(signal.SIGTERM)
    )
    step = saved_step(tmp_path / "run")
    assert step >= 7
    assert SAVED.format("SIGTERM", step) in told
