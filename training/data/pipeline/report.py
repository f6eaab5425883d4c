"""`trident data report`: what each stage of a run left out and why, with examples fit to be shown."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from training.data.pipeline.documents import read_count
from training.data.pipeline.drops import Dropped, read_drops
from training.data.pipeline.run_folder import RunFolder


@dataclass(slots=True)
class RunReport:
    """One run."""

    command: str
    read: int
    """Documents of the input; for `augment` with the translations made of them."""
    written: int
    """Documents of the output."""
    dropped: list[Dropped] = field(default_factory=list)


def read_report(root: Path, examples: int = 3) -> RunReport:
    """What a run's folder says of it.

    Raises ValueError where the folder holds no run, or one that is not complete.
    """
    folder, note = RunFolder(root=root), root / "run.json"
    if not note.is_file():
        raise ValueError(f"{root} holds no run of `trident data filter`, `augment` or `select`: name its --output")
    command = json.loads(note.read_text(encoding="utf-8"))["command"]
    if not folder.is_complete:
        raise ValueError(f"the run in {root} is not complete; run the same `trident data {command}` again")
    return RunReport(
        command=command,
        read=read_count(folder.counts, "read"),
        written=read_count(folder.counts, "written"),
        dropped=read_drops(folder.dropped, examples),
    )


def as_text(report: RunReport) -> str:
    """The report as lines: counts, then each reason with its examples."""
    left_out = sum(entry.count for entry in report.dropped)
    lines = [f"{report.command}: {report.read:,} documents read, {report.written:,} written, {left_out:,} left out"]
    stage = None
    for entry in report.dropped:
        if entry.stage != stage:
            stage = entry.stage
            lines += ["", stage]
        lines.append(f"  {entry.reason:<28} {entry.count:>9,}  {entry.count / max(1, report.read):.2%}")
        for example in entry.examples:
            excerpt = " ".join(example.excerpt.split())
            lines.append(f"      {example.file} no. {example.number}, {example.title}: {excerpt[:120]}")
    return "\n".join(lines)
