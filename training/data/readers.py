"""Readers: each corpus' files as documents, questions or pairs of texts, and nothing else."""

from __future__ import annotations

import bz2
import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO, cast

Record = dict[str, Any]
BRACKETS = re.compile(r"\s*[(（][\s,;，；]*[)）]")
"""What is left of a bracket whose content the upstream extraction lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """A text of its own."""

    document: str
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A span of a context, in code points."""

    start: int
    text: str

    @property
    def end(self) -> int:
        """One past the last character."""
        return self.start + len(self.text)


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question about a context; no answers means that the context does not answer it."""

    identifier: str
    document: str
    question: str
    context: str
    answers: tuple[Answer, ...]

    @property
    def answer(self) -> Answer | None:
        """The answer most annotators gave; of equals the shortest."""
        counts = Counter(self.answers)
        return max(self.answers, key=lambda a: (counts[a], -len(a.text)), default=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A text and what is to be written about it."""

    document: str
    source: str
    targets: tuple[str, ...]


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A UTF-8 text file: plain, bz2 or gz.

    Raises ValueError naming the file where it is cut short, damaged or of another encoding.
    """
    try:
        with _open(path) as file:
            yield file
    except EOFError as error:
        raise ValueError(f"{path} ends too early: it is cut short; copy it again") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.object[error.start]:#04x}); convert it first") from error
    except (OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ValueError(f"{path} is damaged, or not what its name says: {error}") from error


def _open(path: Path) -> TextIO:
    if path.suffix == ".bz2":
        return cast("TextIO", bz2.open(path, "rt", encoding="utf-8"))
    if path.suffix == ".gz":
        return cast("TextIO", gzip.open(path, "rt", encoding="utf-8"))
    return path.open(encoding="utf-8")


def read_records(path: Path, *needed: str) -> Iterator[Record]:
    """Objects of a JSON-lines file, in any form that `open_text` reads.

    Raises ValueError naming file and line of what is no JSON object, or lacks one of the `needed` fields.
    """
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, line {number} is not JSON: {error}") from error
            if not isinstance(record, dict) or not all(name in record for name in needed):
                raise ValueError(f"{path}, line {number} must be an object with {', '.join(needed) or 'fields'}")
            yield record


def read_documents(path: Path) -> Iterator[Document]:
    """Documents of a JSON-lines file with `title` and `text`."""
    for record in read_records(path, "title", "text"):
        yield Document(document=str(record["title"]), text=BRACKETS.sub("", record["text"]))


def read_questions(path: Path) -> Iterator[Question]:
    """Questions of a file in SQuAD's format; spans that do not match their text are dropped.

    Collections without articles of their own (one title for all) count every paragraph as a document.
    Raises ValueError where the file has another format.
    """
    try:
        with open_text(path) as file:
            articles = json.load(file)["data"]
        yield from _questions(articles)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not in SQuAD's format: {error!r}") from error


def _questions(articles: list[Record]) -> Iterator[Question]:
    for number, article in enumerate(articles):
        title = str(article.get("title") or number) if len(articles) > 1 else None
        for paragraph in article["paragraphs"]:
            context = paragraph["context"]
            for qa in paragraph["qas"]:
                answers = tuple(Answer(start=a["answer_start"], text=a["text"]) for a in qa["answers"] if a["text"])
                yield Question(
                    identifier=str(qa["id"]),
                    document=title or context[:80],
                    question=qa["question"].strip(),
                    context=context,
                    answers=tuple(a for a in answers if context[a.start : a.end] == a.text),
                )


def _dialogsum(record: Record) -> Iterator[Pair]:
    targets = [record[key] for key in ("summary", "summary1", "summary2", "summary3") if record.get(key)]
    yield Pair(document=record["fname"], source=record["dialogue"], targets=tuple(targets))


def _scitldr(record: Record) -> Iterator[Pair]:
    yield Pair(document=record["id"], source=record["source"], targets=tuple(record["target"]))


def _bbc(record: Record) -> Iterator[Pair]:
    """Upstream glues the summary's sentences together; the first two are enough of a summary here."""
    sentences = re.split(r"(?<=[.!?])(?=[A-Z\"'])", record["summary"])
    yield Pair(document=record["id"], source=record["article"], targets=(" ".join(sentences[:2]).strip(),))


def _alpaca(record: Record) -> Iterator[Pair]:
    for prefix in ("", "zh_"):
        if prefix and (record["zh_score"] or 0) < 5:
            continue
        instruction, extra, output = (record[prefix + key] for key in ("instruction", "input", "output"))
        if instruction and output:
            prompt = f"{instruction}\n\n{extra}" if extra else instruction
            yield Pair(document=record["instruction"], source=prompt, targets=(output,))


def _arxiv(record: Record) -> Iterator[Pair]:
    prompt = f"Write a title for this abstract.\n\n{record['abstract']}"
    yield Pair(document=str(record["id"]), source=prompt, targets=(record["title"],))


def _aeslc(record: Record) -> Iterator[Pair]:
    prompt = f"Write a subject line for this e-mail.\n\n{record['body']}"
    yield Pair(document=str(record["id"]), source=prompt, targets=(record["subject"],))


PAIR_READERS: dict[str, Callable[[Record], Iterator[Pair]]] = {
    "dialogsum": _dialogsum,
    "scitldr": _scitldr,
    "bbc_summary": _bbc,
    "alpaca": _alpaca,
    "arxiv_titles": _arxiv,
    "aeslc": _aeslc,
}


def read_pairs(path: Path, source: str) -> Iterator[Pair]:
    """Pairs of one of the corpora in `PAIR_READERS`."""
    for record in read_records(path):
        yield from (pair for pair in PAIR_READERS[source](record) if pair.source.strip() and all(pair.targets))
