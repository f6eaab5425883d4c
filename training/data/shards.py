"""Shards on disk: token ids as one flat uint16 array, and one fixed-width row a training example.

    train/text/wiki_en_00/tokens.npy   ids of all documents, each ended by </s>
    train/qa/squad_v1/tokens.npy       ids of all examples, one after the other
    train/qa/squad_v1/rows.npy         where each example lies, its context and its answer
    train/qa/squad_v1/shard.json       source, licence, digest of the file it was made from, counts

Both arrays are memory-mapped, so workers share them and start at once. Their SHA-256 stands in shard.json and is
checked when a shard is opened, so a file that was cut short or changed is named instead of learnt.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np

from training.digests import file_digest

TEXT, QA, SUMMARY, INSTRUCTION = "text", "qa", "summary", "instruction"
UNFINISHED = ".unfinished"
MOST_TOKENS = 1 << 16
"""Of a vocabulary whose ids are uint16."""
ARRAYS = ("tokens.npy", "rows.npy")
FIX = "delete the folder and run trident data prepare again"

QA_ROW = np.dtype(
    [
        ("offset", "<i8"),
        ("length", "<i4"),  # tokens of: question, <sep>, context
        ("context", "<i4"),  # where the context begins
        ("answer_begin", "<i4"),  # -1 where the context does not hold the answer
        ("answer_end", "<i4"),  # one past the last token
    ]
)
PAIR_ROW = np.dtype([("offset", "<i8"), ("source_length", "<i4"), ("target_length", "<i4")])
"""A pair's target follows its source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardInfo:
    """What a shard was made from."""

    name: str
    source: str
    licence: str
    file: str
    sha256: str
    tokens: int
    rows: int
    documents: int
    """Documents read; those held out are not counted."""
    dropped: int
    """Documents dropped for sharing 13 words in a row with a held-out paragraph."""
    tokenizer: str = ""
    """SHA-256 of the tokenizer.json that made its tokens; empty in shards made before it was written."""
    vocabulary: int = 0
    """Tokens of that tokenizer."""
    settings: str = ""
    """Digest of the tokenizer, the window and the held-out questions it was made with."""
    digests: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each of its files; empty in shards made before they were written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A memory-mapped shard."""

    info: ShardInfo
    tokens: np.ndarray
    """uint16 [tokens]."""
    rows: np.ndarray
    """QA_ROW or PAIR_ROW [rows]; empty for plain text."""


def write_shard(folder: Path, info: ShardInfo, tokens: Iterable[np.ndarray], rows: np.ndarray) -> None:
    """Write a shard; it appears under its name only when it is whole, and a failure (a full disk) leaves nothing.

    Raises OSError where the disk does not take it; a former shard of that name is then still there.
    """
    unfinished = folder.with_name(folder.name + UNFINISHED)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        parts = [np.zeros(0, np.uint16), *tokens]
        np.save(unfinished / "tokens.npy", np.concatenate(parts))
        np.save(unfinished / "rows.npy", rows)
        whole = replace(info, digests={name: file_digest(unfinished / name) for name in ARRAYS})
        (unfinished / "shard.json").write_text(json.dumps(asdict(whole), indent=2) + "\n", encoding="utf-8")
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def read_info(folder: Path) -> ShardInfo:
    """What a shard's folder says of itself.

    Raises ValueError where it is damaged.
    """
    try:
        return ShardInfo(**json.loads((folder / "shard.json").read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{folder / 'shard.json'} is damaged ({error}); {FIX}") from error


def read_all_info(root: Path) -> list[ShardInfo]:
    """What all whole shards under the prepared data's `root` say of themselves, by kind and name."""
    return [read_info(folder) for folder in _folders(root, "*")]


def read_shard(folder: Path) -> Shard:
    """Map a shard into memory.

    Raises ValueError naming the file that is missing, cut short or changed.
    """
    info = read_info(folder)
    for name, digest in info.digests.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; {FIX}")
        if file_digest(folder / name) != digest:
            raise ValueError(f"{folder / name} is not the file that was written: cut short or changed; {FIX}")
    try:
        tokens, rows = np.load(folder / "tokens.npy", mmap_mode="r"), np.load(folder / "rows.npy")
    except (OSError, ValueError) as error:
        raise ValueError(f"the arrays in {folder} do not load ({error}); {FIX}") from error
    if len(tokens) != info.tokens or len(rows) != info.rows:
        raise ValueError(
            f"{folder} should hold {info.tokens} tokens in {info.rows} rows, "
            f"but holds {len(tokens)} in {len(rows)}; {FIX}"
        )
    return Shard(info=info, tokens=tokens, rows=rows)


def read_shards(root: Path, kind: str) -> list[Shard]:
    """All shards of one kind under the prepared data's `root`, by name.

    Raises ValueError where there is none.
    """
    folders = _folders(root, kind)
    if not folders:
        raise ValueError(f"{root} holds no prepared '{kind}' data; make it with: trident data prepare")
    return [read_shard(folder) for folder in folders]


def _folders(root: Path, kind: str) -> list[Path]:
    found = (path.parent for path in (root / "train").glob(f"{kind}/*/shard.json"))
    return sorted(folder for folder in found if folder.suffix != UNFINISHED)
