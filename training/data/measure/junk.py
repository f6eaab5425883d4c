"""Kinds of junk that crawled text is full of."""

from __future__ import annotations

import random
import string
from collections.abc import Callable

_MENU = """
    Home About Contact Products Services News Blog Careers Login Register Search Help
    FAQ Sitemap Downloads Gallery Events Partners Press Shop Cart Checkout Account Settings
    Profile Forum Members Archive Categories Tags
"""
MENU = _MENU.split()
_LOREM = """
    lorem ipsum dolor sit amet consectetur adipiscing elit sed do eiusmod tempor
    incididunt ut labore et dolore magna aliqua enim ad minim veniam quis
    nostrud exercitation ullamco laboris nisi aliquip ex ea commodo
"""
LOREM = _LOREM.split()
POLICY = (
    "This website uses cookies to improve your experience.",
    "By using this site you accept our privacy policy and our terms of use.",
    "Read our cookie policy to learn about the use of cookies on this page.",
    "Please enable JavaScript in your browser to see this page.",
    "We use cookies for statistics; see the privacy policy of our partners.",
)
TEST_ONLY = frozenset({"keyboard", "links", "repeated_chinese", "teasers"})


def _english(sentences: list[str]) -> list[str]:
    return [s for s in sentences if s.isascii() and 40 < len(s) < 250]


def _chinese(sentences: list[str]) -> list[str]:
    return [s for s in sentences if "\u4e00" <= s[0] <= "\u9fff" and 10 < len(s) < 120]


def random_letters(chance: random.Random, _: list[str]) -> str:
    """Words of random letters."""
    words = [
        "".join(chance.choices(string.ascii_lowercase, k=chance.randint(2, 9))) for _ in range(chance.randint(80, 400))
    ]
    return " ".join(words).capitalize() + "."


def keyboard(chance: random.Random, _: list[str]) -> str:
    """What fingers on one row of a keyboard type."""
    rows = ("asdfghjkl", "qwertyuiop", "zxcvbnm")
    words = [
        "".join(chance.choices(chance.choice(rows), k=chance.randint(3, 10))) for _ in range(chance.randint(60, 300))
    ]
    return " ".join(words)


def repeated_sentence(chance: random.Random, sentences: list[str]) -> str:
    """One sentence again and again."""
    return " ".join([chance.choice(_english(sentences))] * chance.randint(15, 60))


def repeated_chinese(chance: random.Random, sentences: list[str]) -> str:
    """The same in Chinese."""
    return "".join([chance.choice(_chinese(sentences))] * chance.randint(15, 60))


def repeated_lines(chance: random.Random, sentences: list[str]) -> str:
    """A page of two or three lines that take turns."""
    lines = chance.sample(_english(sentences), chance.randint(2, 3))
    return "\n".join(chance.choice(lines) for _ in range(chance.randint(20, 50)))


def menu(chance: random.Random, _: list[str]) -> str:
    """A site's navigation, one entry a line."""
    return "\n".join(" ".join(chance.sample(MENU, chance.randint(1, 3))) for _ in range(chance.randint(50, 150)))


def lorem(chance: random.Random, _: list[str]) -> str:
    """A printer's filling text."""
    sentences = [" ".join(chance.choices(LOREM, k=chance.randint(8, 20))).capitalize() + "." for _ in range(20)]
    return "Lorem ipsum dolor sit amet. " + " ".join(sentences)


def numbers(chance: random.Random, _: list[str]) -> str:
    """A table."""
    rows = (" ".join(f"{chance.uniform(0, 999):.{chance.randint(0, 3)}f}" for _ in range(8)) for _ in range(60))
    return "Year Total Share Change Rank Mean Low High\n" + "\n".join(rows)


def mojibake(chance: random.Random, sentences: list[str]) -> str:
    """Chinese text read in a Western encoding."""
    text = "".join(chance.sample(_chinese(sentences), 12))
    return text.encode().decode(chance.choice(("latin-1", "cp1252")), errors="replace")


def stub(chance: random.Random, sentences: list[str]) -> str:
    """Too short to teach anything: one or two short sentences."""
    return " ".join(chance.sample([s for s in _english(sentences) if len(s) < 120], chance.randint(1, 2)))


def links(chance: random.Random, _: list[str]) -> str:
    """A list of addresses."""
    return "\n".join(
        f"http://www.{''.join(chance.choices(string.ascii_lowercase, k=8))}.com/{chance.choice(MENU).lower()}/{n}.html"
        for n in range(chance.randint(30, 90))
    )


def hashtags(chance: random.Random, _: list[str]) -> str:
    """Tags."""
    return " ".join("#" + chance.choice(MENU + LOREM) for _ in range(chance.randint(60, 200)))


def word_list(chance: random.Random, sentences: list[str]) -> str:
    """A vocabulary, sorted, one word a line."""
    words = {word.strip(".,;:()\"'").lower() for s in chance.sample(_english(sentences), 30) for word in s.split()}
    return "\n".join(sorted(words))


def random_chinese(chance: random.Random, _: list[str]) -> str:
    """Characters drawn at random from the whole block."""
    return "".join(chr(chance.randint(0x4E00, 0x9FA5)) for _ in range(chance.randint(150, 600))) + "。"


def teasers(chance: random.Random, sentences: list[str]) -> str:
    """Beginnings of articles that end in dots."""
    return "\n".join(" ".join(s.split()[:9]) + "…" for s in chance.sample(_english(sentences), 25))


def policy(chance: random.Random, _: list[str]) -> str:
    """A page of notices."""
    return "\n".join(chance.choice(POLICY) for _ in range(chance.randint(8, 20)))


KINDS: dict[str, Callable[[random.Random, list[str]], str]] = {
    make.__name__: make
    for make in (
        random_letters,
        keyboard,
        repeated_sentence,
        repeated_chinese,
        repeated_lines,
        menu,
        lorem,
        numbers,
        mojibake,
        stub,
        links,
        hashtags,
        word_list,
        random_chinese,
        teasers,
        policy,
    )
}
