"""Labelled documents for stage 1: real texts, copies made of them by stated edits, and texts made to be dropped.

Real documents fall into the development or the test part by a digest of their titles; made ones come from other seeds
and other templates (made.py), and some kinds of junk and all foreign languages of the test part are in no development
part. Labels follow from how a document was made; nobody read them. A real document counts as clean whatever it holds,
so an encyclopedia's article that quotes an e-mail address and is dropped counts as an error.

    clean             documents as they are, cut at a paragraph's end after 12,000 characters
    exact_duplicate   another document's words with other white space, case or punctuation
    near_duplicate    another document with one word in a hundred replaced, a sentence left out, a line added before or
                      behind it, or other numbers; at most a tenth of its characters differ
    other             made by made.py, most of them inside a clean document that is used nowhere else

Of a document and its copy the one that comes first is to be kept.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from training.data.measure import made
from training.data.pipeline.words import CHARACTERS, split_sentences
from training.data.readers import Record, read_records
from training.data.splits import digest

LONGEST = 12_000
LEAST_WORDS, LEAST_CHARACTERS_ZH = 80, 120
ADDED_LINES = (
    "Retrieved from our archive. All articles are checked by an editor before they appear.",
    "This page was last updated on Tuesday. Please tell us about mistakes.",
    "From the library's collection, reproduced with kind permission.",
)
ADDED_LINES_ZH = ("本文由編輯部整理，轉載請註明出處。", "最後更新於星期二，如有錯誤請告知。")


@dataclass(kw_only=True, slots=True)
class Labelled:
    """A document and what is to happen to it."""

    text: str
    kind: str
    keep: bool
    group: int = -1
    """Number of the document it is a copy of, or the original's own; -1 where there is no copy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Amounts:
    """Documents of each kind in a part."""

    english: tuple[tuple[str, int], ...] = (
        ("wikipedia_en/wiki_en_0[3-5].jsonl.bz2", 500),
        ("bbc_summary/*.jsonl.bz2", 150),
        ("openstax_en/*.jsonl.bz2", 80),
        ("arxiv_abstract_title/*.jsonl.bz2", 120),
        ("books_en/books_en_02.jsonl.bz2", 20),
    )
    chinese: tuple[tuple[str, int], ...] = (("wikipedia_zh/*.jsonl.bz2", 400),)
    exact: int = 150
    near: int = 250
    hosts: int = 420
    """Clean documents that carry what is made."""
    personal: int = 250
    secret: int = 150
    abuse: int = 100
    language: int = 100
    junk_of_a_kind: int = 20


def labelled_documents(corpora: Path, part: str, amounts: Amounts | None = None) -> list[Labelled]:
    """The documents of a part, `development` or `test`, in the order in which they are to be read."""
    amounts = amounts or Amounts()
    chance = random.Random(f"{part} documents")
    english = [text for pattern, count in amounts.english for text in islice(_texts(corpora, pattern, part), count)]
    chinese = [text for pattern, count in amounts.chinese for text in islice(_texts(corpora, pattern, part), count)]
    hosts = list(islice(_texts(corpora, "wikipedia_en/wiki_en_06.jsonl.bz2", part), amounts.hosts * 3 // 4))
    hosts += islice(_texts(corpora, "wikipedia_zh/*.jsonl.bz2", part, skip=len(chinese)), amounts.hosts // 4)
    clean = [Labelled(text=text, kind="clean", keep=True, group=n) for n, text in enumerate(english + chinese)]
    chance.shuffle(clean)
    copies = _copies(clean, amounts.exact, exact_copy, "exact_duplicate", chance)
    copies += _copies(clean[amounts.exact :], amounts.near, near_copy, "near_duplicate", chance)
    makers = made.Makers(part=part, hosts=hosts, sentences=[s for text in hosts for s in split_sentences(text)])
    dropped = [
        Labelled(text=text, kind=kind, keep=False)
        for kind, text in makers.documents(
            personal=amounts.personal,
            secret=amounts.secret,
            abuse=amounts.abuse,
            language=amounts.language,
            junk_of_a_kind=amounts.junk_of_a_kind,
        )
    ]
    documents = clean + copies + dropped
    chance.shuffle(documents)
    return _first_of_each_group(documents)


def _first_of_each_group(documents: list[Labelled]) -> list[Labelled]:
    """Where a copy comes before its original, the original is the one to be dropped."""
    seen: dict[int, Labelled] = {}
    kind_of = {d.group: d.kind for d in documents if d.kind.endswith("duplicate")}
    for document in documents:
        if document.group in kind_of:
            document.keep = document.group not in seen
            document.kind = "clean" if document.keep else kind_of[document.group]
            seen[document.group] = document
    return documents


def _copies(
    originals: list[Labelled], count: int, edit: Callable[[str, random.Random], str], kind: str, chance: random.Random
) -> list[Labelled]:
    chosen = originals[:count]
    return [Labelled(text=edit(d.text, chance), kind=kind, keep=False, group=d.group) for d in chosen]


def exact_copy(text: str, chance: random.Random) -> str:
    """The same words: as they are, or with other white space, case or punctuation."""
    edits: tuple[Callable[[str], str], ...] = (
        lambda t: t,
        lambda t: re.sub(r"\n", "\n\n", t),
        lambda t: t.lower() if chance.random() < 0.3 else t.replace(". ", ".  "),
        lambda t: re.sub(r"[;；]", ",", t).replace("“", '"').replace("”", '"'),
    )
    return chance.choice(edits)(text)


def near_copy(text: str, chance: random.Random) -> str:
    """One of the edits of a near duplicate."""
    chinese = is_chinese(text)
    added = chance.choice(ADDED_LINES_ZH if chinese else ADDED_LINES)
    edits: list[Callable[[str, random.Random], str]] = [_with_other_words, _without_a_sentence, _with_other_numbers]
    if len(added) < len(text) / 10:
        edits += [lambda t, _: f"{added}\n{t}", lambda t, _: f"{t}\n{added}"]
    for edit in chance.sample(edits, len(edits)):
        copy = edit(text, chance)
        if copy != text:
            return copy
    return _with_other_words(text, chance)


def _with_other_words(text: str, chance: random.Random) -> str:
    pieces = list(text) if is_chinese(text) else re.split(r"(\s+)", text)
    places = [n for n, piece in enumerate(pieces) if piece.strip() and piece.isalnum()]
    for place in chance.sample(places, max(1, len(places) // 100)):
        pieces[place] = pieces[chance.choice(places)]
    return "".join(pieces)


def _without_a_sentence(text: str, chance: random.Random) -> str:
    short = [s for s in split_sentences(text) if 20 <= len(s) <= len(text) / 10]
    return text.replace(chance.choice(short), "", 1) if short else text


def _with_other_numbers(text: str, chance: random.Random) -> str:
    numbers = list(re.finditer(r"(?<!\d)\d{4}(?!\d)", text))
    chosen = numbers if len(numbers) <= len(text) / 500 else chance.sample(numbers, len(text) // 500)
    for match in sorted(chosen, key=lambda m: -m.start()):
        text = text[: match.start()] + str(chance.randint(1100, 2020)) + text[match.end() :]
    return text


def is_chinese(text: str) -> bool:
    """Whether a third of a text's beginning is Chinese characters."""
    return len(re.findall(f"[{CHARACTERS}]", text[:300])) > 100


def _texts(corpora: Path, pattern: str, part: str, skip: int = 0) -> Iterator[str]:
    """Texts of a part, each cut at a paragraph's end."""
    found = 0
    for path in sorted(corpora.glob(pattern)):
        for record in read_records(path):
            title, text = _title_and_text(record)
            if (digest(title) % 2 == 0) != (part == "development"):
                continue
            text = _cut(text)
            long_enough = len(text) >= LEAST_CHARACTERS_ZH if is_chinese(text) else len(text.split()) >= LEAST_WORDS
            if long_enough:
                found += 1
                if found > skip:
                    yield text


def _title_and_text(record: Record) -> tuple[str, str]:
    text = record.get("text") or record.get("article") or record["abstract"]
    return str(record["title"]), text


def _cut(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    end = text.rfind("\n", LONGEST // 2, LONGEST)
    return text[: end if end > 0 else LONGEST]
