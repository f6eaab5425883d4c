"""What a character is to a reader: white space of some kind, invisible, another form of a common character, or itself.

The tables are read from Unicode's properties by the package `regex`, whose Unicode is newer than the interpreter's.
"""

from __future__ import annotations

import sys
import unicodedata
from enum import IntEnum

import numpy as np
import regex


class Kind(IntEnum):
    """How normalisation reads a character. What is at most SPACE may stay as it is."""

    PLAIN = 0
    SPACE = 1
    """U+0020."""

    WHITE = 2
    """Any other white space within a line, blanks that Unicode calls letters or signs among it."""

    BREAK = 3
    """The end of a line."""

    DROP = 4
    """Seen by nobody: controls, formats, fillers."""

    JOINER = 5
    """Dropped but where it joins letters of certain scripts: U+200C and U+200D."""

    SELECTOR = 6
    """Dropped but behind an emoji: U+FE0E and U+FE0F."""

    MAPPED = 7
    """Another form of the one character in `COMMON`."""

    WIDE_SIGN = 8
    """Punctuation in full width: Chinese text's own, and a form of ASCII's among full-width letters."""

    WIDE_LETTER = 9
    LIGATURE = 10
    """Several Latin letters in one."""

    MARK = 11
    """Combines with what stands before it."""

    FILLER = 12
    """A blank in the place of a Korean letter, U+115F and U+1160: beside other letters a part of their syllable."""


SOFT_HYPHEN = "\u00ad"
HYPHENS = "\u2010\u2011"
"""Unicode's own, and the one where no line ends: what is meant by both is `-`."""

_SEEN = "".join(map(chr, range(0x20000)))
"""Beyond are Han characters, tags and private use."""

_PROPERTIES = {
    Kind.DROP: r"[\p{Cc}\p{Cf}\p{Default_Ignorable_Code_Point}--\p{Prepended_Concatenation_Mark}--[\u115f\u1160]]",
    Kind.MARK: r"[\p{M}\u1161-\u11ff--\p{Default_Ignorable_Code_Point}]",
    Kind.WHITE: r"[\p{White_Space}\x1c-\x1f\u2800\u3164\uffa0]",
}
_RANGES = {
    Kind.BREAK: ("\n\n", "\r\r", "\x85\x85", "\u2028\u2029"),
    Kind.SPACE: ("  ",),
    Kind.DROP: ("\U000e0000\U000e0fff",),
    Kind.JOINER: ("\u200c\u200d",),
    Kind.SELECTOR: ("\ufe0e\ufe0f",),
    Kind.FILLER: ("\u115f\u1160",),
    # Letters and digits in mathematical styles and in circles, characters that equal another one of one code point, and
    # hyphens that say only where a line may end.
    Kind.MAPPED: (
        *("\U0001d400\U0001d7ff", "\u24b6\u24e9", "\u212a\u212b", "\u2126\u2126", "\uf900\ufaff"),
        "\u2010\u2011",
    ),
    Kind.WIDE_SIGN: ("\uff01\uff5e",),
    Kind.WIDE_LETTER: ("\uff10\uff19", "\uff21\uff3a", "\uff41\uff5a"),
    Kind.LIGATURE: ("\ufb00\ufb06", "\u0132\u0133", "\u01c4\u01cc", "\u01f1\u01f3"),
}
"""First and last characters. A later class takes characters from an earlier one, and these from the properties."""


def _match(pattern: str) -> np.ndarray:
    """Code points of a class of characters."""
    return np.fromiter(map(ord, regex.findall(pattern, _SEEN, flags=regex.V1)), np.int64)


def _flags(pattern: str) -> np.ndarray:
    flags = np.zeros(sys.maxunicode + 1, np.bool_)
    flags[_match(pattern)] = True
    return flags


def _tables() -> tuple[np.ndarray, np.ndarray]:
    kinds, common = np.zeros(sys.maxunicode + 1, np.uint8), np.zeros(sys.maxunicode + 1, np.uint32)
    for kind, pattern in _PROPERTIES.items():
        kinds[_match(pattern)] = kind
    for kind, ranges in _RANGES.items():
        for each in ranges:
            kinds[ord(each[0]) : ord(each[1]) + 1] = kind
    for code in np.flatnonzero((kinds >= Kind.MAPPED) & (kinds <= Kind.WIDE_LETTER)).tolist():
        form = "-" if chr(code) in HYPHENS else unicodedata.normalize("NFKC", chr(code))
        if form != chr(code):
            common[code] = ord(form)
        else:
            kinds[code] = Kind.PLAIN
    return kinds, common


KINDS, COMMON = _tables()
"""`Kind` of every code point, uint8; of MAPPED and WIDE characters the common form, uint32: both [U+10FFFF + 1]."""

IS_SMALL = _flags(r"\p{Ll}")

SMALL = np.zeros(sys.maxunicode + 1, np.uint32)
"""The small letter of a capital one; 0 for all other characters: uint32 [U+10FFFF + 1]."""
for _code in _match(r"\p{Lu}").tolist():
    if len(_small := chr(_code).lower()) == 1:
        SMALL[_code] = ord(_small)

LIGATURES = {
    code: unicodedata.normalize("NFKC", chr(code))
    for each in _RANGES[Kind.LIGATURE]
    for code in range(ord(each[0]), ord(each[1]) + 1)
}

IS_EMOJI = _flags(r"[\p{Extended_Pictographic}\p{Emoji_Modifier}]")

IS_JOINED = _flags(r"[\u0600-\u109f\u1780-\u18af]")
"""Arabic, the scripts of India and their neighbours, where a joiner changes how letters look and what they mean."""

IS_SEPARATOR = _flags(r"[\p{Cc}\u180e\u200b-\u200d\u2060\ufeff]")
"""Unseen, and yet what may stand between words: the soft hyphen and marks of a character only stand in them."""

IS_WORD = _flags(r"[\p{sc=Latin}\p{sc=Greek}\p{sc=Cyrillic}\p{M}0-9\u24b6-\u24e9\uff10-\uff19\U0001d400-\U0001d7ff]")
"""Letters, their marks, and digits of words that spaces part, in whatever form."""

IS_HYPHEN = _flags(rf"[\-{HYPHENS}\uff0d]")
"""Where a line may end within a word, and is seen to."""

IS_SPACED = _flags(r"[\p{P}\p{S}\p{N}\p{sc=Latin}\p{sc=Greek}\p{sc=Cyrillic}--[\u2e80-\uffff]]")
"""Scripts that put spaces between words, their punctuation, signs and numbers."""

IS_SET_APART = IS_SPACED & ~_flags(r"\p{Sm}")
"""What belongs to words whose letters stand apart: an equals sign has spaces of its own."""

IS_THIN = _flags(r"[\u2006\u2009\u200a\u202f]")
"""Spaces that typesetters put between letters."""

IS_JAMO = _flags(r"[\u1100-\u115e\u1161-\u11ff\ua960-\ua97c\ud7b0-\ud7fb]")
"""Letters that make up a Korean syllable."""
