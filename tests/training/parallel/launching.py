"""Runs of a recipe on several processes, as a user starts them, and what they logged."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[3]
DEADLINE_S = 280
COMPARED = ("loss", "masked", "continuation", "qa", "summary", "router")


def start(recipe: Path, processes: int, program: Sequence[str] = ("deploy", "train")) -> subprocess.Popen[str]:
    """`trident train`, or another module's command, under torchrun where there are several."""
    launcher: list[str] = []
    if processes > 1:
        launcher = [
            "torch.distributed.run",
            "--nproc-per-node",
            str(processes),
            "--master-port",
            str(_free_port()),
            "-m",
        ]
    command = [sys.executable, "-m", *launcher, *program, str(recipe)]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that a test can signal the whole group
    )


def launch(
    recipe: Path, processes: int, deadline_s: float = DEADLINE_S, program: Sequence[str] = ("deploy", "train")
) -> str:
    """A run to its end; returns what it printed."""
    process = start(recipe, processes, program)
    try:
        told = process.communicate(timeout=deadline_s)[0]
    finally:
        kill(process)
    assert process.returncode == 0, told[-4_000:]
    return told


def kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the launcher and all its processes, which torchrun puts into sessions of their own."""
    if process.poll() is not None:
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


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
