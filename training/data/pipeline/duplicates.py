"""Exact and near duplicates by datatrove's signatures; of every group the first document stays.

    signatures/exact    a 64-bit hash of each document's words         one sort finds equal ones
    signatures/near     MinHash of its shingles, in buckets            equal buckets are candidates, joined to groups

Memory: a chunk of one document's shingles, one signature of each file, and two numbers for each duplicate found.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datatrove.data import Document, DocumentsPipeline
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import (
    ExactDedupConfig,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupSignature,
)

from training.data.pipeline.drops import DropLog
from training.data.pipeline.words import WORDS, split_words

SHINGLES_AT_ONCE = 4_096
MOST_FILES = 65_534
"""datatrove's exact duplicates carry a 16-bit priority, which is the file's number here."""


def words_as_bytes(document: Document) -> str:
    """What two documents must share to be the same: their words, without case, punctuation and white space."""
    return " ".join(split_words(document.text.lower()))


def _earlier_first(document: Document) -> int:
    return MOST_FILES + 1 - int(document.id.split("/")[0])


EXACT = ExactDedupConfig(content_getter=words_as_bytes, document_priority=_earlier_first)


class ExactSignatures(ExactDedupSignature):
    """datatrove's step, but documents go on to the next."""

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Hash each document."""
        signatures: list[Any] = []
        for number, document in enumerate(data or ()):
            signatures += self.get_hashes(document, number)
            yield document
        self.save_hashes(rank, signatures)


class NearSignatures(MinhashDedupSignature):
    """datatrove's step, with shingles of our words, taken in chunks so that a book needs no gigabyte."""

    def get_shingles(self, text: str) -> np.ndarray:
        """Hashes of the runs of words: uint64 [shingles, 1]; a text of fewer words is one shingle."""
        words = split_words(text.lower())
        size = self.config.n_grams
        runs = [" ".join(words[at : at + size]) for at in range(max(1, len(words) - size + 1))]
        return np.fromiter(map(self._hash_func, runs), dtype=np.uint64, count=len(runs)).reshape(-1, 1)

    def get_signature(self, shingles: np.ndarray) -> list[list[int]]:
        """The least hash of every permutation, by bucket."""
        chunks = range(0, len(shingles), SHINGLES_AT_ONCE)
        parts = [super(NearSignatures, self).get_signature(shingles[at : at + SHINGLES_AT_ONCE]) for at in chunks]
        return parts[0] if len(parts) == 1 else np.array(parts).min(axis=0).tolist()


class KeepFirst(PipelineStep):
    """Joins pairs of near duplicates to groups and lists all but the first document of each.

    datatrove's own step keeps an arbitrary one, which may be the copy.
    """

    type, name = "DEDUP", "groups"

    def __init__(self, pairs: Path, output: Path) -> None:
        super().__init__()
        self.pairs, self.output = pairs, output

    def run(self, data: DocumentsPipeline = None, rank: int = 0, world_size: int = 1) -> None:
        """Write `{file}.remove`: the numbers of a file's documents that repeat an earlier one, in order."""
        first: dict[int, int] = {}

        def find(document: int) -> int:
            while (parent := first.get(document, document)) != document:
                first[document] = document = first.get(parent, parent)
            return document

        for path in sorted(self.pairs.glob("*.dups")):
            pairs = np.fromfile(path, dtype="<u4").reshape(-1, 4).astype(np.int64)
            for one, other in zip(
                (pairs[:, 0] << 32 | pairs[:, 1]).tolist(), (pairs[:, 2] << 32 | pairs[:, 3]).tolist(), strict=True
            ):
                low, high = sorted((find(one), find(other)))
                first.setdefault(low, low)
                first[high] = low
        self.output.mkdir(parents=True, exist_ok=True)
        removed: dict[int, list[int]] = {}
        for document in sorted(first):
            if find(document) != document:
                removed.setdefault(document >> 32, []).append(document & 0xFFFFFFFF)
        for file, numbers in removed.items():
            (self.output / f"{file:06d}.remove").write_bytes(struct.pack(f"<{len(numbers)}I", *numbers))


class DropDuplicates(PipelineStep):
    """Leaves out what the two searches listed."""

    type, name = "DEDUP", "drop"

    def __init__(self, exact: Path, near: Path, log: DropLog) -> None:
        super().__init__()
        self.exact, self.near, self.log = exact, near, log

    def run(self, data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        """Hand on the documents that repeat none; their places count among the kept ones."""
        exact = _numbers(self.exact / "00000" / f"{rank:05d}.c4_dup")
        near = _numbers(self.near / f"{rank:06d}.remove")
        with self.log as log:
            log.open(rank)
            for number, document in enumerate(data or ()):
                reason = "exact_duplicate" if number in exact else "near_duplicate" if number in near else None
                if reason is None:
                    yield document
                else:
                    document.metadata["filter_reason"] = reason
                    log.write(document, rank)


def _numbers(path: Path) -> set[int]:
    return set(np.fromfile(path, dtype="<u4").tolist()) if path.is_file() else set()


def minhash(shingle_words: int, buckets: int, hashes: int) -> MinhashConfig:
    """datatrove's settings."""
    return MinhashConfig(n_grams=shingle_words, num_buckets=buckets, hashes_per_bucket=hashes)


def signatures(work: Path, config: MinhashConfig) -> list[PipelineStep]:
    """Steps that sign documents; the last of a pipeline."""
    return [
        ExactSignatures(str(work / "signatures/exact"), config=EXACT),
        NearSignatures(str(work / "signatures/near"), config=config, language=WORDS),
    ]


def find_exact(work: Path) -> PipelineStep:
    """The search for equal hashes; one task."""
    return ExactFindDedups(str(work / "signatures/exact"), str(work / "duplicates/exact"), config=EXACT)


def find_near(work: Path, config: MinhashConfig) -> PipelineStep:
    """The search for equal buckets; one task a bucket."""
    return MinhashDedupBuckets(str(work / "signatures/near"), str(work / "duplicates/pairs"), config=config)


def group_near(work: Path) -> PipelineStep:
    """The joining of pairs; one task."""
    return KeepFirst(work / "duplicates/pairs", work / "duplicates/near")


def drop_duplicates(work: Path, log: DropLog) -> PipelineStep:
    """The step that leaves out what was found, after `ReadKept`."""
    return DropDuplicates(work / "duplicates/exact", work / "duplicates/near", log)
