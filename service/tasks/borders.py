"""Where a long text may be cut into pieces without changing a token.

The tokenizer first splits a text by its pattern (`PIECES` of `model/tokenizer.py`) and merges bytes within a split
only. A cut is safe where a split ends whatever follows, and where what precedes does not look ahead:

    word│ word    word│, word    "│word    1871│年    3│x          but not   don'|t   12|34   two  |spaces   光|速

Runs of one kind without an end (a million digits, say) have no border; no rule of the pattern says where to cut them.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum

import numpy as np


class Kind(IntEnum):
    """What the pattern takes a character for, where that is sure in every version of Unicode."""

    OTHER = 0
    """Letters and signs of all sorts, apostrophes among them: an end of English contractions."""

    SPACE = 1
    WHITE = 2
    """White space besides, or what only Python calls so."""

    LETTER = 3
    DIGIT = 4
    PUNCTUATION = 5


PUNCTUATION = '.,;:!?()"/-，。、；：？！（）「」《》'
"""Neither letter nor digit nor space, and in no name of an added token such as `<unused_7>`."""

LAST_KNOWN = 0xFFFF
SEARCHED_AT_ONCE = 1_000
"""Characters: most borders are found within ten."""


def _kinds() -> np.ndarray:
    kinds = np.full(LAST_KNOWN + 1, Kind.OTHER, np.uint8)
    kinds[[code for code in range(LAST_KNOWN) if chr(code).isspace()]] = Kind.WHITE
    kinds[[ord(" "), ord("\n")]] = Kind.SPACE
    for first, last in ("AZ", "az", "\u4e00\u9fa5"):
        kinds[ord(first) : ord(last) + 1] = Kind.LETTER
    kinds[ord("0") : ord("9") + 1] = Kind.DIGIT
    kinds[[ord(sign) for sign in PUNCTUATION]] = Kind.PUNCTUATION
    return kinds


def _borders() -> np.ndarray:
    borders = np.zeros((len(Kind), len(Kind)), np.bool_)
    known = (Kind.LETTER, Kind.DIGIT, Kind.PUNCTUATION)
    for left in known:
        for right in known:
            borders[left, right] = left is not right
    # No split has white space behind another character.
    borders[[Kind.OTHER, *known], Kind.SPACE] = True
    return borders


KINDS = _kinds()
BORDERS = _borders()
"""bool [kind on the left, kind on the right]."""


def pieces(text: str, size: int) -> Iterator[str]:
    """A text in pieces of `size` characters and however many more it takes to the next border."""
    begin = 0
    while begin + size < len(text):
        end = next_border(text, begin + size)
        yield text[begin:end]
        begin = end
    if begin < len(text) or not text:
        yield text[begin:]


def next_border(text: str, start: int) -> int:
    """The first place from `start` (at least 1) on where the text may be cut, at the latest its end."""
    for at in range(start, len(text), SEARCHED_AT_ONCE):
        codes = np.frombuffer(text[at - 1 : at + SEARCHED_AT_ONCE].encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = KINDS[np.minimum(codes, LAST_KNOWN)]
        found = np.flatnonzero(BORDERS[kinds[:-1], kinds[1:]])
        if len(found):
            return at + int(found[0])
    return len(text)


def holds_border(text: str) -> bool:
    """Whether a text might be cut somewhere inside."""
    return len(text) > 1 and next_border(text, 1) < len(text)
