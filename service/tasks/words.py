"""What parts words and what does not: unseen characters in the place of spaces, and white space within a word.

    two␀words  ▶  two words      gold-␍␊themed  ▶  gold-themed      S␣u␣p␣e␣r␣␣B␣o␣w␣l  ▶  Super␣␣Bowl

Everything here is flags of characters: bool [S]. R counts runs of them.
"""

from __future__ import annotations

import numpy as np

from service.tasks.characters import IS_EMOJI, IS_HYPHEN, IS_SET_APART, IS_SPACED, IS_THIN, IS_WORD, Kind

SEPARATES = (3, 25)
"""Shortest and longest mean length of words, by which what parts them is told from what merely stands in a text."""

JUDGED = 20
"""Letters from which on a text without spaces is believed to have none, and one of single letters to be spread."""

SPREAD = 0.8
"""Share of single letters among the words of a text whose letters are set apart."""


def parting(codes: np.ndarray, kinds: np.ndarray, separator_S: np.ndarray) -> np.ndarray:
    """Which unseen characters stand in the place of spaces; none where a text has spaces, or no words."""
    spaced_S = IS_SPACED[codes]
    word_S = spaced_S | IS_EMOJI[codes]
    begins_R, ends_R = _runs_of(separator_S)
    before_R, behind_R = before(word_S)[begins_R], behind(word_S)[ends_R - 1]
    letters, white = int(spaced_S.sum()), int(is_white(kinds).sum())
    if letters < JUDGED or white * SEPARATES[1] >= letters or not _parts(int((before_R & behind_R).sum()), letters):
        return np.zeros(len(codes), np.bool_)
    parts_R = before_R | behind_R
    return _stretches(len(codes), begins_R[parts_R], ends_R[parts_R])


def within_words(codes: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """Which white space parts no words: the line's end behind a word's hyphen, and what sets a word's letters apart."""
    word_S, white_S = IS_WORD[codes], is_white(kinds)
    begins_R, ends_R = _runs_of(white_S)
    hyphen_S = IS_HYPHEN[codes] & before(word_S)
    split_R = before(hyphen_S)[begins_R] & behind(word_S)[ends_R - 1] & _breaks(kinds, begins_R)

    seen_S = ~white_S
    single_S = IS_SET_APART[codes] & ~before(seen_S) & ~behind(seen_S)
    narrow_R = ends_R - begins_R == 1
    apart_R = before(single_S)[begins_R] & behind(single_S)[ends_R - 1] & narrow_R
    apart_R &= IS_THIN[codes[begins_R]] | _is_spread(seen_S, single_S, int((~narrow_R).sum()))
    gone_R = split_R | apart_R
    return _stretches(len(codes), begins_R[gone_R], ends_R[gone_R])


def white_behind(hyphen_S: np.ndarray, codes: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """White space with a line's end in it, between some hyphens and the rest of their words."""
    begins_R, ends_R = _runs_of(is_white(kinds))
    split_R = before(hyphen_S)[begins_R] & behind(IS_WORD[codes])[ends_R - 1] & _breaks(kinds, begins_R)
    return _stretches(len(codes), begins_R[split_R], ends_R[split_R])


def before(flags: np.ndarray) -> np.ndarray:
    """The flag of the character before each."""
    return np.concatenate([[False], flags[:-1]])


def behind(flags: np.ndarray) -> np.ndarray:
    """The flag of the character behind each."""
    return np.concatenate([flags[1:], [False]])


def is_white(kinds: np.ndarray) -> np.ndarray:
    """Which characters are white space."""
    return (kinds >= Kind.SPACE) & (kinds <= Kind.BREAK)


def _parts(separators: int, letters: int) -> bool:
    shortest, longest = SEPARATES
    return separators * shortest <= letters < separators * longest


def _is_spread(seen_S: np.ndarray, single_S: np.ndarray, wide: int) -> bool:
    """Whether the letters of a text are set apart by single spaces, and its words by wider ones."""
    words, singles = int((seen_S & ~before(seen_S)).sum()), int(single_S.sum())
    return singles >= max(JUDGED, SPREAD * words) and _parts(wide, singles)


def _breaks(kinds: np.ndarray, begins_R: np.ndarray) -> np.ndarray:
    """Which runs of white space hold a line's end."""
    return np.logical_or.reduceat(kinds == Kind.BREAK, begins_R) if begins_R.size else np.zeros(0, np.bool_)


def _runs_of(flags: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where runs of true flags begin, and where they are over: both [R]."""
    return np.flatnonzero(flags & ~before(flags)), np.flatnonzero(flags & ~behind(flags)) + 1


def _stretches(size: int, begins_R: np.ndarray, ends_R: np.ndarray) -> np.ndarray:
    """Flags that are true in some stretches, which do not touch."""
    changes = np.zeros(size + 1, np.int8)
    changes[begins_R] = 1
    changes[ends_R] = -1
    return np.cumsum(changes[:-1], dtype=np.int8) == 1
