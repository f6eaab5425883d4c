"""What a run tells while it goes: a progress bar, `metrics.jsonl`, and TensorBoard where it is asked for."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

METRICS = "metrics.jsonl"


class RunLog:
    """Open for the length of a run; `record` appends one line and moves the bar."""

    def __init__(self, folder: Path, *, tensorboard: bool, steps_done: int = 0, silent: bool = False) -> None:
        """Lines of steps after `steps_done`, which a resumed run takes again, are dropped.

        A silent log, of a process that leaves telling to another, does nothing.
        """
        self._silent = silent
        if silent:
            return
        folder.mkdir(parents=True, exist_ok=True)
        _keep_lines(folder / METRICS, steps_done)
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(folder / "tensorboard")
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), console=Console(stderr=True)
        )
        self._task = self._bar.add_task("training", total=1.0)
        self._tokens, self._since_s = 0, time.perf_counter()

    def __enter__(self) -> RunLog:
        if not self._silent:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._silent:
            return
        self._bar.stop()
        self._file.close()
        if self._writer is not None:
            self._writer.close()

    def count(self, tokens: int) -> None:
        """Tokens that went through the network since the last record."""
        if not self._silent:
            self._tokens += tokens

    def record(self, step: int, done: float, values: Mapping[str, float]) -> None:
        """Write a line: the given values, throughput, and the device's peak memory.

        Args:
            step: steps done.
            done: part of the run that is behind, 0 to 1.
            values: what was measured at this step.
        """
        if self._silent:
            return
        now_s = time.perf_counter()
        line = {
            "step": step,
            **values,
            "tokens_per_s": self._tokens / max(1e-9, now_s - self._since_s),
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        }
        self._tokens, self._since_s = 0, now_s
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in line.items():
                self._writer.add_scalar(name, value, step)
        summary = f"step {step}  loss {values['loss']:.3f}  {line['tokens_per_s'] / 1e3:.1f} k tokens/s"
        self._bar.update(self._task, description=summary, completed=min(1.0, done))


def _keep_lines(path: Path, steps_done: int) -> None:
    """Drop lines of later steps, and one that a kill cut short."""
    if not path.is_file():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= steps_done]
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
