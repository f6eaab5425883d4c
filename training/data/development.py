"""The development files: what evaluation reads and training never sees."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from training.data.catalogue import SourceFile
from training.data.readers import Document, Pair, Record, open_text
from training.data.shards import UNFINISHED
from training.data.splits import held_out_articles


def keep_squad_articles(files: Iterable[SourceFile], output: Path) -> None:
    """Write the held-out SQuAD articles to the development file, references and all."""
    path = output / "dev" / "squad.json"
    squad = [file for file in files if file.source.name == "squad"]
    if path.is_file() or not squad:
        return
    with open_text(squad[0].path) as file:
        content = json.load(file)
    held_out = held_out_articles(article["title"] for article in content["data"])
    kept = [article for article in content["data"] if article["title"] in held_out]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(UNFINISHED)
    content = {"version": content["version"], "data": kept}
    unfinished.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    unfinished.replace(path)


def write_documents(path: Path, documents: Iterable[Document]) -> None:
    """Held-out documents, one object a line."""
    write_lines(path, ({"title": document.document, "text": document.text} for document in documents))


def write_pairs(path: Path, pairs: Iterable[Pair]) -> None:
    """Held-out pairs, one object a line."""
    write_lines(path, ({"source": pair.source, "targets": pair.targets} for pair in pairs))


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """JSON lines of a development file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
