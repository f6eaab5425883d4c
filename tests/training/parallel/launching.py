"""Runs of a recipe on several processes, and what they logged.

Most are forks, which begin at once; some go through torchrun as a user's do, and each of these pays for its imports.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from tests.forks import FINISH_S, ROOT, Forks, command
from tests.ports import free_port

COMPARED = ("loss", "masked", "continuation", "qa", "summary", "router")


def start(recipe: Path, processes: int) -> Forks:
    """`trident train` in one process, or in several as torchrun would start them."""
    return Forks(command, "train", recipe, size=processes)


def launch(recipe: Path, processes: int, deadline_s: float = FINISH_S) -> str:
    """A run to its end; returns what it printed."""
    with start(recipe, processes) as run:
        return run.finish(deadline_s)


def start_torchrun(recipe: Path, processes: int, program: Sequence[str] = ("deploy", "train")) -> subprocess.Popen[str]:
    """`trident train`, or another module's command, in processes of their own as a user starts them."""
    launcher: list[str] = []
    if processes > 1:
        port = str(free_port())
        launcher = ["torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", port, "-m"]
    return subprocess.Popen(
        [sys.executable, "-m", *launcher, *program, str(recipe)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that a test can signal the whole group
    )


def launch_torchrun(recipe: Path, processes: int, program: Sequence[str] = ("deploy", "train")) -> str:
    """The same, to its end; returns what it printed."""
    process = start_torchrun(recipe, processes, program)
    try:
        told = process.communicate(timeout=FINISH_S)[0]
    finally:
        kill(process)
    assert process.returncode == 0, told[-4_000:]
    return told


def kill(process: subprocess.Popen[str] | Forks) -> None:
    """SIGKILL to all processes; torchrun puts those that it starts into sessions of their own."""
    if process.poll() is not None:
        return
    if isinstance(process, Forks):
        process.kill()
        return
    started = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for each in started:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    psutil.wait_procs(started)
    process.communicate()


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """Lines of metrics.jsonl."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def largest_difference(run: Path, other: Path) -> float:
    """Of the losses of all steps and objectives of two runs."""
    lines, others = metrics_of(run), metrics_of(other)
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    return max(abs(a[name] - b[name]) for a, b in zip(lines, others, strict=True) for name in COMPARED)
