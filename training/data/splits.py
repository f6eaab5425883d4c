"""Which documents training never sees.

Splits are decided by document, never by row, from a digest of its name: the same on every machine and in every
order of reading. Questions on one article, or both languages of one instruction, always fall on one side.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

HELD_OUT_ARTICLES = 8
"""SQuAD articles that stay unseen."""
HELD_OUT_FRACTION = 0.01
"""Part of every other corpus' documents that stays unseen."""
NGRAM = 13
"""Words in a row that count as a copy (GPT-3, appendix C)."""
WORD = re.compile(r"\w+")


def digest(text: str) -> int:
    """A number between 0 and 2**64 from a text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def is_held_out(document: str, fraction: float = HELD_OUT_FRACTION) -> bool:
    """Whether a document belongs to the development part."""
    return digest(document) < fraction * 2**64


def held_out_articles(titles: Iterable[str], count: int = HELD_OUT_ARTICLES) -> frozenset[str]:
    """The articles kept unseen: those whose digests come first."""
    return frozenset(sorted(set(titles), key=digest)[:count])


def word_ngrams(text: str, length: int = NGRAM) -> Iterator[tuple[str, ...]]:
    """Runs of `length` words, lower case, punctuation ignored."""
    words = WORD.findall(text.lower())
    return zip(*(words[start:] for start in range(length)), strict=False)


class OverlapFilter:
    """Finds texts that share a run of words with texts kept for evaluation."""

    def __init__(self, held_out: Iterable[str]) -> None:
        self.ngrams = {ngram for text in held_out for ngram in word_ngrams(text)}

    def overlaps(self, text: str) -> bool:
        """Whether any run of 13 words of `text` occurs in a held-out text."""
        return any(ngram in self.ngrams for ngram in word_ngrams(text))
