"""What copying, converting and careless programs do to a text: every kind leaves its words as they are."""

from __future__ import annotations

import random
import re
import textwrap
import unicodedata
from collections.abc import Callable

INVISIBLE = "\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u00ad\u202a\u202c\u2066\u2069\u180e\u2061\u034f\ufe0f\x00\x7f"
SPACES = "\u0009\u000b\u000c\u0020\u00a0\u1680\u2000\u2003\u2007\u2009\u200a\u202f\u205f\u3000\u2800"
BREAKS = ("\n", "\r", "\r\n", "\x85", "\u2028", "\u2029", "\n\n\n", "\r\n \r\n")
LIGATURES = {"ffi": "ﬃ", "ffl": "ﬄ", "ff": "ﬀ", "fi": "ﬁ", "fl": "ﬂ", "st": "ﬆ"}
WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}

MATHEMATICAL = {ord(plain) + n: first + n for plain, first in (("A", 0x1D400), ("a", 0x1D41A)) for n in range(26)}
CIRCLED = {ord(plain) + n: first + n for plain, first in (("A", 0x24B6), ("a", 0x24D0)) for n in range(26)}
SELECTORS = "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE0110), 0x180B, 0x180C, 0x180D)))
TAGS = "".join(map(chr, range(0xE0020, 0xE0080)))
BIDI = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"

Corruption = Callable[[str, random.Random], str]


def replace_spaces(space: str) -> Corruption:
    """Another white space, or several, for every space."""
    return lambda text, _: text.replace(" ", space)


def wrap(line_end: str) -> Corruption:
    """Lines of at most 72 columns."""
    return lambda text, _: line_end.join(textwrap.wrap(text, 72, break_long_words=False, break_on_hyphens=False))


def insert(characters: str, share: float) -> Corruption:
    """A character behind every so manieth one, on the average."""

    def corrupt(text: str, chance: random.Random) -> str:
        return "".join(each + (chance.choice(characters) if chance.random() < share else "") for each in text)

    return corrupt


def _mixed_spaces(text: str, chance: random.Random) -> str:
    return re.sub(" ", lambda _: "".join(chance.choices(SPACES, k=chance.randint(1, 3))), text)


def _mixed_breaks(text: str, chance: random.Random) -> str:
    return re.sub(" ", lambda match: chance.choice(BREAKS) if chance.random() < 0.2 else match.group(), text)


def _soft_line_ends(text: str, chance: random.Random) -> str:
    return re.sub("(?<=[a-z]{2})(?=[a-z]{2})", lambda _: "\u00ad\n" if chance.random() < 0.1 else "", text)


def set_apart(letters: str, words: str) -> Corruption:
    """Something between all letters, and between words."""
    return lambda text, _: words.join(letters.join(word) for word in text.split(" "))


def _ligatures(text: str, _: random.Random) -> str:
    return re.sub("ff[il]?|f[il]|st", lambda match: LIGATURES[match.group()], text)


def _everything(text: str, chance: random.Random) -> str:
    for corrupt in (_ligatures, _mixed_breaks, _mixed_spaces, insert(INVISIBLE, 0.1)):
        text = corrupt(text, chance)
    return "\ufeff" + text + " \r\n"


CORRUPTIONS: dict[str, Corruption] = {
    "tabs": replace_spaces("\t"),
    "double spaces": replace_spaces("  "),
    "no-break spaces": replace_spaces("\u00a0"),
    "ideographic spaces": replace_spaces("\u3000"),
    "thin spaces": replace_spaces("\u2009"),
    "vertical tabs": replace_spaces("\x0b"),
    "form feeds": replace_spaces("\x0c"),
    "LF for spaces": replace_spaces("\n"),
    "CR LF for spaces": replace_spaces("\r\n"),
    "line separators": replace_spaces("\u2028"),
    "paragraph separators": replace_spaces("\u2029"),
    "next lines": replace_spaces("\x85"),
    "zero-width spaces for spaces": replace_spaces("\u200b"),
    "joiners for spaces": replace_spaces("\u200d"),
    "non-joiners for spaces": replace_spaces("\u200c"),
    "word joiners for spaces": replace_spaces("\u2060\u2060"),
    "byte order marks for spaces": replace_spaces("\ufeff"),
    "vowel separators for spaces": replace_spaces("\u180e"),
    "controls for spaces": replace_spaces("\x00"),
    "Korean fillers for spaces": replace_spaces("\u115f"),
    "wide Korean fillers for spaces": replace_spaces("\u3164"),
    "Braille blanks": replace_spaces("\u2800"),
    "zero-width spaces beside spaces": replace_spaces(" \u200b"),
    "lines of 72, LF": wrap("\n"),
    "lines of 72, CR LF": wrap("\r\n"),
    "lines of 72, CR": wrap("\r"),
    "lines of 72, blank lines between": wrap("\n\n"),
    "lines of 72, spaces at their ends": wrap("   \n"),
    "lines of 72, indented": wrap("\n        "),
    "lines ended at hyphens": lambda text, _: text.replace("-", "-\n"),
    "lines ended at soft hyphens": _soft_line_ends,
    "letters apart by thin spaces": set_apart("\u2009", " "),
    "letters apart": set_apart(" ", "   "),
    "soft hyphens in words": insert("\u00ad", 0.15),
    "zero-width spaces in words": insert("\u200b", 0.15),
    "joiners in words": insert("\u200c\u200d", 0.15),
    "variation selectors in words": insert(SELECTORS, 0.15),
    "tags in words": insert(TAGS, 0.15),
    "bidirectional marks in words": insert(BIDI, 0.15),
    "words isolated": lambda text, _: " ".join(f"\u2068{word}\u2069" for word in text.split(" ")),
    "invisible characters anywhere": insert(INVISIBLE, 0.3),
    "byte order mark": lambda text, _: "\ufeff" + text,
    "full-width letters": lambda text, _: re.sub("[A-Za-z0-9]", lambda each: each.group().translate(WIDE), text),
    "full-width ASCII": lambda text, _: text.translate(WIDE).replace(" ", "\u3000"),
    "mathematical letters": lambda text, _: text.translate(MATHEMATICAL),
    "circled letters": lambda text, _: text.translate(CIRCLED),
    "hyphens that break no lines": lambda text, _: text.replace("-", "\u2011"),
    "ligatures": _ligatures,
    "marks apart": lambda text, _: unicodedata.normalize("NFD", text),
    "white space of all kinds": _mixed_spaces,
    "line ends of all kinds": _mixed_breaks,
    "everything at once": _everything,
    "capitals": lambda text, _: text.upper(),
}
