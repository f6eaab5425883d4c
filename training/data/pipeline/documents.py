"""Reading and writing corpora as datatrove's documents: one file a task, nothing skipped in silence.

datatrove's own reader warns about a damaged line and goes on; training data that went missing unseen are worse than a
run that stops and names the line.
"""

from __future__ import annotations

import bz2
import gzip
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep

from training.data.catalogue import SOURCES, Use, find_source
from training.data.readers import read_records
from training.data.shards import UNFINISHED

SUFFIXES = (".jsonl", ".jsonl.bz2", ".jsonl.gz")
OWN = "own_text"
"""Folder, and source in the catalogue, of texts from files that the catalogue does not know."""
PROGRESS_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpora:
    """A folder's files, in the order of their tasks."""

    root: Path
    texts: tuple[Path, ...]
    """JSON lines with `text`."""
    others: tuple[Path, ...]
    """Questions, summaries and instructions: no documents of their own, handed on as they are."""

    @property
    def identity(self) -> list[tuple[str, int, int]]:
        """Names, sizes and times of change, by which a resumed run knows its files again."""
        files = sorted((*self.texts, *self.others))
        return [(str(path.relative_to(self.root)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]

    def output_name(self, path: Path) -> Path:
        """Where a file's documents belong in a folder of corpora, so that `trident data prepare` finds them."""
        name = path.name.removesuffix(".bz2").removesuffix(".gz").removesuffix(".jsonl") + ".jsonl.bz2"
        relative = path.relative_to(self.root)
        for source in SOURCES:
            if source.use is Use.TEXT and path.match(source.pattern):
                return Path(source.pattern).parent / name
        flat = "_".join([*relative.parts[:-1], name])
        return Path(find_source(OWN).pattern).parent / flat


def find_corpora(root: Path) -> Corpora:
    """Every file of JSON lines under `root`, those of the catalogue's labelled corpora apart.

    Raises ValueError where the folder is missing or holds no text, or two files would get one name.
    """
    if not root.is_dir():
        raise ValueError(f"there is no folder {root}: name a folder of corpora")
    labelled = {path for source in SOURCES if source.use is not Use.TEXT for path in root.glob(source.pattern)}
    texts = sorted(path for path in root.rglob("*") if path.name.endswith(SUFFIXES) and path not in labelled)
    if not texts:
        raise ValueError(f"{root} holds no text: files of JSON lines with 'text', named *.jsonl, *.jsonl.bz2 or .gz")
    corpora = Corpora(root=root, texts=tuple(texts), others=tuple(sorted(labelled)))
    names = [corpora.output_name(path) for path in texts]
    if twice := sorted({str(name) for name in names if names.count(name) > 1}):
        raise ValueError(f"two files of {root} would both become {twice[0]}: rename one")
    return corpora


class ReadDocuments(PipelineStep):
    """The documents of a task's file."""

    type, name = "READ", "documents"

    def __init__(self, files: Iterable[Path], root: Path, *, counts: Path, progress: Path) -> None:
        super().__init__()
        self.files, self.root, self.counts, self.progress = tuple(files), root, counts, progress

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Read file `rank`; the record it came from travels in the metadata."""
        path = self.files[rank]
        told_s, size, done, number = time.monotonic(), max(1, path.stat().st_size), 0, -1
        for number, record in enumerate(read_records(path, "text")):
            text = record["text"]
            if not isinstance(text, str):
                raise ValueError(f"{path}: 'text' of document {number} must be a string, got {text!r:.60}")
            done += len(text)
            if time.monotonic() - told_s > PROGRESS_S:
                told_s = time.monotonic()
                self.progress.mkdir(parents=True, exist_ok=True)
                (self.progress / f"{rank:05d}").write_text(f"{_part(path, done, size):.4f}")
            metadata = {"file": str(path.relative_to(self.root)), "number": number, "record": record}
            yield Document(text=text, id=f"{rank}/{number}", metadata=metadata)
        write_count(self.counts, "read", rank, number + 1)


def write_count(folder: Path, what: str, rank: int, documents: int) -> None:
    """Note how many documents a task read or wrote."""
    path = folder / what / f"{rank:05d}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(str(documents))


def read_count(folder: Path, what: str) -> int:
    """Documents of all tasks."""
    return sum(int(path.read_text()) for path in folder.glob(f"**/{what}/*"))


def _part(path: Path, characters: int, size: int) -> float:
    """Roughly how much of a file is read: text compresses to about a quarter of its characters."""
    return min(0.99, characters / size / (1 if path.suffix == ".jsonl" else 3.7))


class WriteKept(PipelineStep):
    """Writes what passed the rules for the stages that follow, and hands it on."""

    type, name = "WRITE", "kept"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Write each document with its metadata."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with gzip.open(kept_file(self.folder, rank), "wt", compresslevel=1, encoding="utf-8") as file:
            for document in data or ():
                record = document.metadata["record"] | {"text": document.text}
                place = {"file": document.metadata["file"], "number": document.metadata["number"]}
                file.write(json.dumps({"record": record, **place}, ensure_ascii=False) + "\n")
                yield document


def kept_file(folder: Path, rank: int) -> Path:
    """Where `WriteKept` puts a task's documents."""
    return folder / f"{rank:05d}.jsonl.gz"


class ReadKept(PipelineStep):
    """What `WriteKept` wrote, in the same order."""

    type, name = "READ", "kept"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Read the task's documents."""
        for line in read_records(kept_file(self.folder, rank), "record"):
            yield Document(text=line["record"]["text"], id=f"{rank}/{line['number']}", metadata=line)


class WriteCorpus(PipelineStep):
    """Writes a task's documents as one file of a corpus; it appears under its name only when it is whole."""

    type, name = "WRITE", "corpus"

    def __init__(self, folder: Path, names: Iterable[Path], *, counts: Path) -> None:
        super().__init__()
        self.folder, self.names, self.counts = folder, tuple(names), counts

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Write each document's record with its text as it is now; an absent title becomes the document's place."""
        path = self.folder / self.names[rank]
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished, written = path.with_name(path.name + UNFINISHED), 0
        with bz2.open(unfinished, "wt", encoding="utf-8") as file:
            for document in data or ():
                title = {"title": f"{document.metadata['file']}/{document.metadata['number']}"}
                record = title | document.metadata["record"] | {"text": document.text}
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                written += 1
                yield document
        unfinished.replace(path)
        write_count(self.counts, "written", rank, written)


class HandOn(PipelineStep):
    """Puts the labelled corpora beside the texts: linked where the disk allows it, copied where not."""

    type, name = "WRITE", "labelled corpora"

    def __init__(self, corpora: Corpora, folder: Path) -> None:
        super().__init__()
        self.corpora, self.folder = corpora, folder

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Link or copy every file."""
        for path in self.corpora.others:
            target = self.folder / path.relative_to(self.corpora.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)
            try:
                os.link(path.resolve(), target)
            except OSError:
                shutil.copyfile(path, target)


class Clean(PipelineStep):
    """Removes what only the run itself needed."""

    type, name = "WRITE", "clean"

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
