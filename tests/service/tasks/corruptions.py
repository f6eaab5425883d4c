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
    "zero-width spaces beside spaces": replace_spaces(" \u200b"),
    "lines of 72, LF": wrap("\n"),
    "lines of 72, CR LF": wrap("\r\n"),
    "lines of 72, CR": wrap("\r"),
    "lines of 72, blank lines between": wrap("\n\n"),
    "lines of 72, spaces at their ends": wrap("   \n"),
    "lines of 72, indented": wrap("\n        "),
    "soft hyphens in words": insert("\u00ad", 0.15),
    "zero-width spaces in words": insert("\u200b", 0.15),
    "joiners in words": insert("\u200c\u200d", 0.15),
    "invisible characters anywhere": insert(INVISIBLE, 0.3),
    "byte order mark": lambda text, _: "\ufeff" + text,
    "full-width letters": lambda text, _: re.sub("[A-Za-z0-9]", lambda each: each.group().translate(WIDE), text),
    "full-width ASCII": lambda text, _: text.translate(WIDE).replace(" ", "\u3000"),
    "ligatures": _ligatures,
    "marks apart": lambda text, _: unicodedata.normalize("NFD", text),
    "white space of all kinds": _mixed_spaces,
    "line ends of all kinds": _mixed_breaks,
    "everything at once": _everything,
    "capitals": lambda text, _: text.upper(),
}
