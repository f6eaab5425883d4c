"""Documents made to be dropped: personal data and secrets inside real texts, abuse, foreign languages, junk.

Each part has its own seed and templates. `TEST_ONLY` kinds of junk, and the test part's foreign languages, were not
looked at before the test was run.
"""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from training.data.measure import identifiers, junk
from training.data.measure.templates import ABUSE, ABUSE_ZH, PERSONAL, PERSONAL_ZH, SECRET

LANGUAGES = {"development": ("fr", "de", "ru", "ja"), "test": ("es", "it", "pt", "ko", "pl", "nl", "sv", "uk")}
MODULES = {
    "development": ("argparse", "ast", "difflib", "calendar"),
    "test": ("tarfile", "inspect", "decimal", "mailbox", "pathlib"),
}


@dataclass(kw_only=True, slots=True)
class Makers:
    """Makes the documents of one part."""

    part: str
    hosts: list[str]
    """Clean texts, each used once."""
    sentences: list[str]
    """Clean sentences, for junk that repeats or cuts them."""
    chance: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.part} made")

    def documents(
        self, *, personal: int, secret: int, abuse: int, language: int, junk_of_a_kind: int
    ) -> Iterator[tuple[str, str]]:
        """Kind and text of every document."""
        hosts = list(self.hosts)
        self.chance.shuffle(hosts)
        for number in range(personal):
            kind, make = _nth(identifiers.PERSONAL, number)
            yield f"personal.{kind}", self.inside(hosts.pop(), make(self.chance), PERSONAL[self.part])
        for number in range(secret):
            kind, make = _nth(identifiers.SECRETS, number)
            yield f"secret.{kind}", self.inside(hosts.pop(), make(self.chance), SECRET[self.part])
        for number in range(abuse):
            yield "abuse", self.abuse(chinese=number % 4 == 3)
        for number in range(language):
            languages = LANGUAGES[self.part]
            yield "language", foreign(languages[number % len(languages)], self.chance)
        for kind, make_junk in self.junk_kinds().items():
            for _ in range(junk_of_a_kind):
                yield f"junk.{kind}", make_junk()

    def inside(self, host: str, datum: str, templates: tuple[str, ...]) -> str:
        """A clean text with a sentence that holds the datum between two of its paragraphs."""
        chinese = host[:40].isascii() is False and any("\u4e00" <= c <= "\u9fff" for c in host[:40])
        sentence = self.chance.choice(
            PERSONAL_ZH[self.part] if chinese and templates in PERSONAL.values() else templates
        )
        lines = host.split("\n")
        lines.insert(self.chance.randint(0, len(lines)), sentence.format(datum))
        return "\n".join(lines)

    def abuse(self, *, chinese: bool) -> str:
        """A rant: a third of its sentences are insults."""
        templates = (ABUSE_ZH if chinese else ABUSE)[self.part]
        insults, characters = (identifiers.INSULTS_ZH, True) if chinese else (identifiers.INSULTS, False)
        calm = [s for s in self.sentences if 40 < len(s) < 300 and ("\u4e00" <= s[0] <= "\u9fff") == characters]
        rant = []
        for _ in range(self.chance.randint(6, 14)):
            rant.append(self.chance.choice(templates).format(self.chance.choice(insults), self.chance.choice(insults)))
            rant += self.chance.sample(calm, 2)
        return ("" if chinese else " ").join(rant)

    def junk_kinds(self) -> dict[str, Callable[[], str]]:
        """The part's kinds of junk."""
        kinds = {name: make for name, make in junk.KINDS.items() if self.part == "test" or name not in junk.TEST_ONLY}
        made: dict[str, Callable[[], str]] = {
            name: lambda make=make: make(self.chance, self.sentences)  # type: ignore[misc]
            for name, make in kinds.items()
        }
        made["code"] = self.code
        return made

    def code(self) -> str:
        """Lines of a module of Python's standard library."""
        lines = inspect.getsource(importlib.import_module(self.chance.choice(MODULES[self.part]))).splitlines()
        start = self.chance.randrange(max(1, len(lines) - 150))
        return "\n".join(lines[start : start + self.chance.randint(60, 150)])


def _nth(makers: dict[str, identifiers.Maker], number: int) -> tuple[str, identifiers.Maker]:
    return list(makers.items())[number % len(makers)]


def foreign(language: str, chance: random.Random) -> str:
    """Sentences of another language, from spaCy's examples."""
    sentences = list(importlib.import_module(f"spacy.lang.{language}.examples").sentences)
    chance.shuffle(sentences)
    return " ".join(sentences[: chance.randint(5, 12)])
