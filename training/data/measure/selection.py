"""Precision and recall of stage 3 on labelled documents, a tenth of which belong to the domain."""

from __future__ import annotations

import json
import platform
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from training.data.measure.domains import DOMAINS, DomainSet, domain_set
from training.data.pipeline.selection import select_corpora
from training.data.pipeline.settings import DataSettings, load_settings
from training.data.readers import read_records

SEEDS, INSIDE, OUTSIDE_EACH = 100, 400, 9
TOPS = (0.05, 0.1, 0.2)


def measure(
    corpora: Annotated[Path, typer.Argument(help="Folder of the real corpora.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file of results.")],
    part: Annotated[str, typer.Option(help="development or test.")] = "test",
    config: Annotated[Path | None, typer.Option(help="Settings, as for `trident data select`.")] = None,
) -> None:
    """Select from the labelled documents of every domain and compare."""
    settings = load_settings(config)
    results = {}
    for name in DOMAINS:
        labelled = domain_set(corpora, name, part, seeds=SEEDS, inside=INSIDE, outside=0)
        outside = OUTSIDE_EACH * len(labelled.documents)
        labelled = domain_set(corpora, name, part, seeds=SEEDS, inside=INSIDE, outside=outside)
        results[name] = figures(labelled, settings)
    content = {"part": part, "machine": f"{platform.machine()}, Python {platform.python_version()}", "domains": results}
    output.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for name, result in results.items():
        tenth = result["top"]["0.1"]
        typer.echo(f"{name}: precision {tenth['precision']:.3f}, recall {tenth['recall']:.3f} of the top tenth")


def figures(labelled: DomainSet, settings: DataSettings) -> dict[str, Any]:
    """Precision and recall at several parts."""
    inside = sum(document.inside for document in labelled.documents)
    result: dict[str, Any] = {
        "seeds": len(labelled.seeds),
        "documents": len(labelled.documents),
        "inside": inside,
        "top": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "labelled").mkdir()
        _write(root / "seeds.jsonl", labelled.seeds)
        _write(root / "labelled/documents.jsonl", [document.text for document in labelled.documents])
        for top in TOPS:
            select_corpora(root / "labelled", root / "seeds.jsonl", root / f"top_{top}", top, settings)
            (made,) = (root / f"top_{top}/corpora").rglob("*.jsonl.bz2")
            chosen = [labelled.documents[int(record["title"])] for record in read_records(made)]
            right = sum(document.inside for document in chosen)
            result["top"][str(top)] = {
                "selected": len(chosen),
                "precision": right / len(chosen),
                "recall": right / inside,
            }
    return result


def _write(path: Path, texts: list[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"title": str(n), "text": text}) + "\n" for n, text in enumerate(texts))


if __name__ == "__main__":
    typer.run(measure)
