"""Texts as the model was taught to read them, and the way back to the texts as they were sent.

    as sent      The␉bridge␍␊was␣␣bu␀ilt ﬁrst    (␀: a soft hyphen, say)
    normalised   The␣bridge␣was␣built␣first      every character knows the one it was made from

White space of all kinds becomes spaces and, where lines mean something, `\\n`; what nobody sees is dropped; full-width
and mathematical letters, ligatures and letters with their marks apart become the common ones. Chinese punctuation
stays: the model knows it. A text in capitals is read in small letters. A line that ends at a word's hyphen goes on
without a space, and letters that are set apart are one word again. Normalising twice changes nothing.
"""

from __future__ import annotations

import unicodedata
from array import array
from dataclasses import dataclass
from enum import IntEnum
from io import StringIO
from string import ascii_lowercase

import numpy as np

from service.tasks.characters import (
    COMMON,
    IS_EMOJI,
    IS_JAMO,
    IS_JOINED,
    IS_SEPARATOR,
    IS_SMALL,
    KINDS,
    LIGATURES,
    SMALL,
    SOFT_HYPHEN,
    Kind,
)
from service.tasks.words import before, behind, is_white, parting, white_behind, within_words

MOST_MARKS = 30
"""In a row, as Unicode's stream-safe text has them (UAX 15): putting marks in order takes quadratic time."""

CAPITALS = (20, 20)
"""Letters from which on a text may be one in capitals, and how many of those it has for every small one.

F1 of questions and contexts in capitals: 6.9 as they are, 64.7 in small letters (68.3 as they were written)."""


class Lines(IntEnum):
    """How many line breaks in a row are kept."""

    NONE = 0
    """A line break is a space, as in the contexts of questions."""

    SINGLE = 1
    """As in the dialogues and articles that summaries were learnt from."""

    DOUBLE = 2
    """A blank line parts instruction and input."""


@dataclass(frozen=True, slots=True, eq=False)
class Normalised:
    """A text to read."""

    text: str
    _begins: np.ndarray | None = None
    """INT32 [R]: where runs of characters begin that are as far from their origins as each other."""

    _shifts: np.ndarray | None = None
    """INT32 [R]: how far that is."""

    def origin(self, at: int) -> int:
        """Which code point of the text as sent became the one at `at`, of several the first."""
        if self._begins is None or self._shifts is None:
            return at
        return at + int(self._shifts[np.searchsorted(self._begins, at, "right") - 1])

    def place(self, start: int, end: int) -> tuple[int, int]:
        """The stretch of the text as sent that `text[start:end]`, which is not empty, was made from."""
        return self.origin(start), self.origin(end - 1) + 1


def normalise(text: str, lines: Lines = Lines.NONE) -> Normalised:
    """The text to read. A megabyte takes 6 ms where nothing changes, 37 with spaces doubled, 83 with marks apart."""
    if _is_plain(text):
        return Normalised(text)
    codes = _codes(text)
    kinds = KINDS[codes]
    if _is_normal(kinds) and not _in_capitals(codes):
        return Normalised(text)
    present = np.bincount(kinds, minlength=len(Kind)).astype(np.bool_)
    origins = np.arange(len(codes), dtype=np.int32)
    if present[[Kind.DROP, Kind.JOINER, Kind.SELECTOR, Kind.FILLER]].any() or "\r\n" in text:
        kept = ~_dropped(codes, kinds)
        codes, kinds, origins = codes[kept], kinds[kept], origins[kept]
    if present[[Kind.WHITE, Kind.BREAK]].any() or "  " in text:
        kept = ~within_words(codes, kinds)
        codes, kinds, origins = codes[kept], kinds[kept], origins[kept]
    codes, kinds, origins = _join_white(codes, kinds, origins, lines)
    if present[[Kind.MAPPED, Kind.WIDE_LETTER]].any():
        codes = _common_forms(codes, kinds)
    if _in_capitals(codes):
        codes = np.where(SMALL[codes] != 0, SMALL[codes], codes)
    if present[Kind.LIGATURE]:
        codes, origins = _open_ligatures(codes, origins)
    normalised = str(codes.data, "utf-32-le", "surrogatepass")
    del codes, kinds
    if present[Kind.MARK]:
        normalised, origins = _compose(normalised, origins)
    if normalised == text:
        return Normalised(text)
    return Normalised(normalised, *_runs(origins))


def _is_plain(text: str) -> bool:
    """Whether a text is normal, told without tables where that is easy: a window's answers are many short texts."""
    if not (text.isascii() and text.isprintable()) or "  " in text or text[:1] == " " or text[-1:] == " ":
        return False
    fewest, ratio = CAPITALS
    if len(text) < fewest:
        return True
    letters = text.encode()
    return (len(letters) - len(letters.translate(None, ascii_lowercase.encode()))) * ratio > len(letters)


def _is_normal(kinds: np.ndarray) -> bool:
    if not len(kinds):
        return True
    if kinds.max() > Kind.SPACE or Kind.SPACE in (kinds[0], kinds[-1]):
        return False
    spaces = kinds == Kind.SPACE
    return not (spaces[1:] & spaces[:-1]).any()


def _in_capitals(codes: np.ndarray) -> bool:
    """Whether a text has (nearly) no small letters, and enough capital ones for that to be no name."""
    fewest, ratio = CAPITALS
    if np.count_nonzero(codes - np.uint32(ord("a")) < 26) * ratio > len(codes):
        return False
    capitals = int(np.count_nonzero(SMALL[codes]))
    return capitals >= fewest and capitals >= ratio * int(IS_SMALL[codes].sum())


def _dropped(codes: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Which characters nobody misses, CR before LF among them: bool [S].

    Where a text of spaced scripts has no spaces, those that part its words become white in `kinds` instead.
    """
    soft_S = codes == ord(SOFT_HYPHEN)
    kinds[white_behind(soft_S, codes, kinds)] = Kind.DROP
    emoji_S = IS_EMOJI[codes]
    selector_S = (kinds == Kind.SELECTOR) & before(emoji_S)
    joins_emoji_S = before(emoji_S | selector_S) & behind(emoji_S)
    joined_S = IS_JOINED[codes]
    joiner_S = (kinds == Kind.JOINER) & (joins_emoji_S | (before(joined_S) & behind(joined_S)))
    dropped_S = (kinds >= Kind.DROP) & (kinds <= Kind.SELECTOR) & ~selector_S & ~joiner_S
    dropped_S |= (codes == ord("\r")) & behind(codes == ord("\n"))
    jamo_S = IS_JAMO[codes]
    kinds[(kinds == Kind.FILLER) & ~before(jamo_S) & ~behind(jamo_S)] = Kind.WHITE
    parts_S = parting(codes, kinds, dropped_S & IS_SEPARATOR[codes])
    kinds[parts_S] = Kind.WHITE
    return dropped_S & ~parts_S


def _join_white(
    codes: np.ndarray, kinds: np.ndarray, origins: np.ndarray, lines: Lines
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One space, or the line breaks that are kept, for every run of white space; none at either end."""
    white_S = is_white(kinds)
    first_S = white_S & ~before(white_S)
    codes = np.where(white_S, np.uint32(ord(" ")), codes)
    kept_S = first_S | ~white_S
    if lines is not Lines.NONE and (starts := np.flatnonzero(first_S)).size:
        break_S = kinds == Kind.BREAK
        breaks_R = np.minimum(np.add.reduceat(break_S.astype(np.int32), starts), lines)
        codes[starts[breaks_R >= 1]] = ord("\n")
        second = starts[breaks_R >= 2] + 1
        codes[second], kept_S[second] = ord("\n"), True
    if white_S.any():
        begin, behind = int(white_S.argmin()), int(white_S[::-1].argmin())
        kept_S[:begin] = kept_S[len(kept_S) - behind :] = False
        kept_S &= ~white_S.all()
    return codes[kept_S], kinds[kept_S], origins[kept_S]


def _common_forms(codes: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Characters of one code point in their common form; full-width punctuation only where words are in full width."""
    wide_S = (kinds == Kind.WIDE_SIGN) | (kinds == Kind.WIDE_LETTER)
    changed_S = kinds == Kind.MAPPED
    if wide_S.any():
        run_S = wide_S | (codes == ord(" "))
        starts = np.flatnonzero(run_S != before(run_S))
        holds_letter_R = np.logical_or.reduceat(kinds == Kind.WIDE_LETTER, starts)
        sizes_R = np.diff(starts, append=len(codes))
        changed_S[starts[0] :] |= np.repeat(holds_letter_R, sizes_R) & wide_S[starts[0] :]
    return np.where(changed_S, COMMON[codes], codes)


def _open_ligatures(codes: np.ndarray, origins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every ligature as its letters, which share its origin."""
    sizes_S = np.ones(len(codes), np.int64)
    for code, letters in LIGATURES.items():
        sizes_S[codes == code] = len(letters)
    source_T = np.repeat(np.arange(len(codes)), sizes_S)
    opened_T = codes[source_T]
    first_S = np.cumsum(sizes_S) - sizes_S
    for code, letters in LIGATURES.items():
        places = first_S[codes == code]
        for more, letter in enumerate(letters):
            opened_T[places + more] = ord(letter)
    return opened_T, origins[source_T]


def _compose(text: str, origins: np.ndarray) -> tuple[str, np.ndarray]:
    """Letters with their marks as one character, where there is one (NFC)."""
    mark_S = KINDS[_codes(text)] == Kind.MARK
    begins, ends = np.flatnonzero(mark_S & ~before(mark_S)), np.flatnonzero(mark_S & ~behind(mark_S)) + 1
    short = (begins > 0) & (ends - begins <= MOST_MARKS)
    composed, done = StringIO(), 0
    gone_from, gone_to = array("i"), array("i")
    for begin, end in zip(begins[short] - 1, ends[short], strict=True):
        apart = text[begin:end]
        form = unicodedata.normalize("NFC", apart)
        if form != apart and len(form) <= len(apart):
            composed.write(text[done:begin])
            composed.write(form)
            gone_from.append(begin + len(form))
            gone_to.append(end)
            done = end
    composed.write(text[done:])
    changes = np.zeros(len(text) + 1, np.int8)
    changes[gone_from] += 1
    changes[gone_to] -= 1
    return composed.getvalue(), origins[np.cumsum(changes[:-1], dtype=np.int8) == 0]


def _codes(text: str) -> np.ndarray:
    """Code points: uint32 [S]."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _runs(origins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the distance to the origins changes, and to what."""
    shifts = origins - np.arange(len(origins), dtype=np.int32)
    begins = np.flatnonzero(np.diff(shifts, prepend=-1))
    return begins.astype(np.int32), shifts[begins]
