"""Abuse: a document made of insults and obscenities, by the density of listed words.

The list is a selection from LDNOOBW (CC BY 4.0; see its header). As a list of forbidden words the whole of it would
drop articles on breasts, Hitler and Christ; the selection has no word with an innocent meaning, and one quotation does
not make a document abusive.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.resources import files

from training.data.pipeline.findings import Finding
from training.data.pipeline.words import split_words


@lru_cache(maxsize=1)
def _pattern() -> re.Pattern[str]:
    lines = (files("training.data.pipeline") / "abuse_words.txt").read_text(encoding="utf-8").splitlines()
    listed = [line for line in lines if line and not line.startswith("#")]
    latin = "|".join(re.escape(word) for word in listed if word.isascii())
    chinese = "|".join(re.escape(word) for word in listed if not word.isascii())
    return re.compile(rf"(?<![^\W_])(?:{latin})(?![^\W_])|{chinese}", re.IGNORECASE)


def abusive_words(text: str) -> Iterator[Finding]:
    """Every listed word."""
    for match in _pattern().finditer(text):
        yield Finding(start=match.start(), end=match.end(), kind="abuse")


def is_abusive(text: str, *, least_words: int, least_share: float) -> bool:
    """Whether listed words are at least `least_words`, and at least `least_share` of all."""
    count = sum(1 for _ in abusive_words(text))
    return count >= least_words and count >= least_share * len(split_words(text))
