"""What a stage left out: one line a document, fit to be shown, and the counts over all of them.

dropped/3-quality/00003.json     {reason: count} of the fourth input file
dropped/3-quality/00003.jsonl    {"reason", "file", "number", "title", "excerpt"}
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TextIO

from datatrove.data import Document

from training.data.pipeline.sensitive import fit_to_show
from training.data.readers import read_records

EXCERPT = 240
"""Characters of a dropped document that are kept as its example."""
MARGIN = 1_000
"""Characters on either side of an excerpt's place that are searched for what must not be shown."""
MOST_EXAMPLES = 1_000


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
    """Writes the drops of one rule; stands where datatrove's filters take an exclusion writer.

    All are counted, the first `MOST_EXAMPLES` of a task and reason are written with an excerpt.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: TextIO | None = None
        self._counts: Counter[str] = Counter()
        self._rank = 0

    def open(self, rank: int) -> None:
        """Start a task's file over."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file = (self.folder / f"{rank:05d}.jsonl").open("w", encoding="utf-8")
        self._counts, self._rank = Counter(), rank

    def __enter__(self) -> DropLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            (self.folder / f"{self._rank:05d}.json").write_text(json.dumps(self._counts), encoding="utf-8")

    def write(self, document: Document, rank: int = 0) -> None:
        """Note a document with the reason in its metadata."""
        if self._file is None:
            self.open(rank)
        assert self._file is not None
        reason = document.metadata["filter_reason"]
        self._counts[reason] += 1
        if self._counts[reason] > MOST_EXAMPLES:
            return
        drop = Drop(
            reason=reason,
            file=document.metadata["file"],
            number=document.metadata["number"],
            title=fit_to_show(str(document.metadata["record"].get("title", ""))[:EXCERPT]),
            excerpt=_excerpt(document.text, document.metadata.get("found_at", 0)),
        )
        self._file.write(json.dumps(asdict(drop), ensure_ascii=False) + "\n")


def _excerpt(text: str, place: int) -> str:
    """What stands around a place; wide margins are searched, so that no half of an address stays at the border."""
    before = fit_to_show(text[max(0, place - MARGIN) : place])[-EXCERPT // 3 :] if place else ""
    return (before + fit_to_show(text[place : place + MARGIN]))[:EXCERPT]


@dataclass(slots=True)
class Dropped:
    """All drops of one reason."""

    stage: str
    reason: str
    count: int
    examples: list[Drop] = field(default_factory=list)


def read_drops(folder: Path, examples: int) -> list[Dropped]:
    """Counts and the first examples by stage and reason, in the order of the stages, the most frequent first."""
    found: list[Dropped] = []
    for stage in sorted(path for path in folder.glob("*") if path.is_dir()):
        counts: Counter[str] = Counter()
        for path in stage.glob("*.json"):
            counts.update(json.loads(path.read_text(encoding="utf-8")))
        entries = {reason: Dropped(stage.name, reason, count) for reason, count in counts.most_common()}
        for path in sorted(stage.glob("*.jsonl")):
            for record in read_records(path, "reason"):
                entry = entries[record["reason"]]
                if len(entry.examples) < examples:
                    entry.examples.append(Drop(**record))
        found += entries.values()
    return found
