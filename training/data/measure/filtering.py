"""Accuracy of stage 1 on labelled documents: how many are kept or dropped as their labels say."""

from __future__ import annotations

import json
import platform
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from training.data.measure.labelled import Labelled, labelled_documents
from training.data.pipeline.drops import read_drops
from training.data.pipeline.filtering import filter_corpora
from training.data.pipeline.settings import DataSettings, load_settings
from training.data.readers import read_records

FILES = 4
"""Files the documents are dealt to, so that copies lie in other files too."""


def measure(
    corpora: Annotated[Path, typer.Argument(help="Folder of the real corpora.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file of results.")],
    part: Annotated[str, typer.Option(help="development or test.")] = "test",
    config: Annotated[Path | None, typer.Option(help="Settings, as for `trident data filter`.")] = None,
) -> None:
    """Filter the labelled documents of a part and compare."""
    documents = labelled_documents(corpora, part)
    with tempfile.TemporaryDirectory() as folder:
        result = accuracy(documents, Path(folder), load_settings(config))
    result = {"part": part, "machine": f"{platform.machine()}, Python {platform.python_version()}"} | result
    output.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    typer.echo(f"{output}: {result['accuracy']:.4f} of {result['documents']} documents decided right")


def accuracy(documents: list[Labelled], folder: Path, settings: DataSettings) -> dict[str, Any]:
    """Decisions by kind of document, and every wrong one with its beginning."""
    write_corpus(documents, folder / "labelled")
    report = filter_corpora(folder / "labelled", folder / "filtered", settings)
    assert report is not None
    kept = {int(record["title"]) for record in _records(folder / "filtered/corpora")}
    reasons = {
        int(drop.title): entry.reason
        for entry in read_drops(folder / "filtered/dropped", examples=len(documents))
        for drop in entry.examples
    }
    decided: dict[str, Counter[str]] = defaultdict(Counter)
    wrong = []
    for number, document in enumerate(documents):
        decision = "kept" if number in kept else reasons[number]
        decided[document.kind][decision] += 1
        if document.keep != (number in kept):
            wrong.append({"kind": document.kind, "decision": decision, "begins": document.text[:100]})
    keep = Counter((document.keep, number in kept) for number, document in enumerate(documents))
    return {
        "documents": len(documents),
        "accuracy": 1 - len(wrong) / len(documents),
        "to_keep": {"kept": keep[True, True], "dropped": keep[True, False]},
        "to_drop": {"kept": keep[False, True], "dropped": keep[False, False]},
        "decisions_by_kind": {kind: dict(counts.most_common()) for kind, counts in sorted(decided.items())},
        "wrong": wrong,
    }


def write_corpus(documents: list[Labelled], folder: Path) -> None:
    """The documents as files of JSON lines, in order; a document's number is its title."""
    folder.mkdir(parents=True)
    size = -(-len(documents) // FILES)
    for start in range(0, len(documents), size):
        with (folder / f"part_{start // size}.jsonl").open("w", encoding="utf-8") as file:
            for number, document in enumerate(documents[start : start + size], start):
                file.write(json.dumps({"title": str(number), "text": document.text}, ensure_ascii=False) + "\n")


def _records(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.rglob("*.jsonl.bz2")):
        yield from read_records(path)


if __name__ == "__main__":
    typer.run(measure)
