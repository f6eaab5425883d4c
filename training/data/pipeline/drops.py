"""What a stage left out: one line a document, fit to be shown, and the counts over all of them.

    dropped/rules.quality/00003.jsonl    {"reason", "file", "number", "title", "excerpt"} of the fourth input file
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TextIO

from datatrove.data import Document

from training.data.pipeline.sensitive import fit_to_show
from training.data.readers import read_records

EXCERPT = 240
"""Characters of a dropped document that are kept as its example."""
SHOWN_AROUND = 20_000
"""Characters around a finding that are searched for more before an excerpt is cut from them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drop:
    """A document left out."""

    reason: str
    file: str
    number: int
    """Place among the file's documents, from 0."""
    title: str
    excerpt: str
    """Its beginning, or the place of what was found, without personal data, secrets and insults."""


class DropLog:
    """Writes the drops of one rule; stands where datatrove's filters take an exclusion writer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: TextIO | None = None

    def open(self, rank: int) -> None:
        """Start a task's file, so that a task that drops nothing is empty and not unknown."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = (self.folder / f"{rank:05d}.jsonl").open("w", encoding="utf-8")

    def __enter__(self) -> DropLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, document: Document, rank: int = 0) -> None:
        """Note a document with the reason in its metadata."""
        if self._file is None:
            self.open(rank)
        assert self._file is not None
        place = document.metadata.get("found_at", 0)
        start = max(0, place - SHOWN_AROUND)
        around = document.text[start : place + SHOWN_AROUND]
        before = fit_to_show(around[: place - start])[-EXCERPT // 3 :] if place else ""
        drop = Drop(
            reason=document.metadata["filter_reason"],
            file=document.metadata["file"],
            number=document.metadata["number"],
            title=fit_to_show(str(document.metadata["record"].get("title", ""))),
            excerpt=(before + fit_to_show(around[place - start :]))[:EXCERPT],
        )
        self._file.write(json.dumps(asdict(drop), ensure_ascii=False) + "\n")


@dataclass(slots=True)
class Dropped:
    """All drops of one reason."""

    stage: str
    reason: str
    count: int = 0
    examples: list[Drop] = field(default_factory=list)


def read_drops(folder: Path, examples: int) -> list[Dropped]:
    """Counts and the first examples by stage and reason, in the order of the stages, the most frequent first."""
    found: dict[tuple[str, str], Dropped] = {}
    for stage, drop in _drops(folder):
        entry = found.setdefault((stage, drop.reason), Dropped(stage, drop.reason))
        entry.count += 1
        if len(entry.examples) < examples:
            entry.examples.append(drop)
    return sorted(found.values(), key=lambda entry: (entry.stage, -entry.count, entry.reason))


def _drops(folder: Path) -> Iterator[tuple[str, Drop]]:
    for path in sorted(folder.glob("*/*.jsonl")):
        for record in read_records(path, "reason"):
            yield path.parent.name, Drop(**record)
