"""What a run tells while it goes: a progress bar, `metrics.jsonl`, and TensorBoard where it is asked for.

Where standard error is no terminal but a file, a line for every line of the metrics stands in for the bar.
"""

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

    def __init__(
        self,
        folder: Path,
        *,
        tensorboard: bool,
        steps_done: int = 0,
        silent: bool = False,
        peak_flops: float | None = None,
    ) -> None:
        """Lines of steps after `steps_done`, which a resumed run takes again, are dropped.

        A silent log, of a process that leaves telling to another, does nothing. `peak_flops` of all GPUs together, per
        second, makes an MFU; None, where it is not known, leaves that null.
        """
        self._silent, self._peak_flops = silent, peak_flops
        if silent:
            return
        folder.mkdir(parents=True, exist_ok=True)
        _keep_lines(folder / METRICS, steps_done)
        self._file = (folder / METRICS).open("a", encoding="utf-8")
        self._writer = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(folder / "tensorboard")
        self._console = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=1.0)
        self._forget(time.perf_counter())

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

    def tell(self, text: str) -> None:
        """One line for who watches."""
        if not self._silent:
            self._console.print(text)

    def count(self, tokens: int, flops: float = 0.0) -> None:
        """A step that is done: the tokens that went through the network, and its useful FLOPs, of all processes."""
        if not self._silent:
            self._steps += 1
            self._tokens += tokens
            self._flops += flops

    def record(self, step: int, done: float, values: Mapping[str, float]) -> float | None:
        """Write a line: the given values, throughput and MFU since the last one, and the device's peak memory.

        Returns the seconds of a step since the last line; None where the log is silent.

        Args:
            step: steps done.
            done: part of the run that is behind, 0 to 1.
            values: what was measured at this step.
        """
        if self._silent:
            return None
        now_s = time.perf_counter()
        passed_s = max(1e-9, now_s - self._since_s)
        tokens_per_s = self._tokens / passed_s
        step_s = passed_s / max(1, self._steps)
        line: dict[str, float | None] = {
            "step": step,
            **values,
            "step_s": step_s,
            "tokens_per_s": tokens_per_s,
            "mfu": None if self._peak_flops is None else self._flops / passed_s / self._peak_flops,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        }
        self._forget(now_s)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        if self._writer is not None:
            for name, value in line.items():
                if value is not None:
                    self._writer.add_scalar(name, value, step)
        summary = f"step {step}  loss {values['loss']:.3f}  {tokens_per_s / 1e3:.1f} k tokens/s"
        if line["mfu"] is not None:
            summary += f"  MFU {line['mfu']:.1%}"
        self._bar.update(self._task, description=summary, completed=min(1.0, done))
        if self._bar.disable:
            self.tell(f"{summary}  {min(1.0, done):.0%} done")
        return step_s

    def _forget(self, now_s: float) -> None:
        """Begin to count anew."""
        self._steps, self._tokens, self._flops, self._since_s = 0, 0, 0.0, now_s


def _keep_lines(path: Path, steps_done: int) -> None:
    """Drop lines of later steps, and one that a kill cut short."""
    if not path.is_file():
        return
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    kept = [line for line in lines if json.loads(line)["step"] <= steps_done]
    path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
