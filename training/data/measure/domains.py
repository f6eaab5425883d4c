"""Labelled documents for stage 3: what an article is about, by its definition, which is then taken away.

An encyclopedia's first sentence says what its subject is: "Gout is a form of inflammatory arthritis …". A pattern over
that sentence labels the article; the article that is scored begins after its first paragraph, so the words the label
came from are not what is found again. Everything else counts as outside the domain, articles that only touch it
included: precision is measured without leaving doubtful ones out. For arXiv the authors' own category is the label.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from training.data.readers import Record, read_records
from training.data.splits import digest

LEAST_CHARACTERS = 600
LONGEST = 20_000
PERSON = re.compile(r"\((?:born|c\.|[^)]{0,60}\b1\d{3}|[^)]{0,60}\b20\d\d)")
IS = r"\b(?:is|are|was|were|refers? to|describes?|means?)\b[^.]{0,90}?\b"
MEDICAL = re.compile(
    IS + r"(?:diseases?|disorders?|syndromes?|infections?|cancers?|tumou?rs?|medical|surg(?:ery|ical)|medicine"
    r"|inflammation|medications?|antibiotics?|antidepressants?|vaccines?|illness(?:es)?|symptoms?|patients?|pathology|physicians?)\b"
)
LEGAL = re.compile(
    IS + r"(?:legal|laws?|lawyers?|courts?|statutes?|treat(?:y|ies)|legislation|jurisprudence|lawsuits?"
    r"|judges?|tort|contracts?|civil code|copyright|patents?|act of (?:parliament|congress))\b"
)
NO_LAW = re.compile(
    r"\b(?:films?|novels?|series|game|monarchy|republic|country|nations?|empire|goddess|god|philosoph\w+|theorem|princip\w+"
    r"|politics|takes place|physics|mathematic\w*|logic|market|economy|name)\b"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainDocument:
    """A text and whether it belongs to the domain."""

    text: str
    inside: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class DomainSet:
    """Seeds and labelled documents of one domain; they share no document."""

    seeds: list[str]
    documents: list[DomainDocument]


def _about(pattern: re.Pattern[str], not_about: re.Pattern[str] = PERSON) -> Callable[[Record], bool]:
    def is_inside(record: Record) -> bool:
        first = record["text"].split("\n", 1)[0].split(". ", 1)[0][:300]
        return bool(pattern.search(first)) and not PERSON.search(first) and not not_about.search(first)

    return is_inside


def _after_the_first_paragraph(record: Record) -> str:
    return record["text"].partition("\n")[2][:LONGEST]


@dataclass(frozen=True, kw_only=True, slots=True)
class Domain:
    """Where a domain's documents come from."""

    development: str
    test: str
    """Files, as globs under the corpora."""
    is_inside: Callable[[Record], bool]
    text: Callable[[Record], str]


DOMAINS = {
    "medical": Domain(
        development="wikipedia_en/wiki_en_0[0-2].jsonl.bz2",
        test="wikipedia_en/wiki_en_0[3-7].jsonl.bz2",
        is_inside=_about(MEDICAL),
        text=_after_the_first_paragraph,
    ),
    "legal": Domain(
        development="wikipedia_en/wiki_en_0[0-2].jsonl.bz2",
        test="wikipedia_en/wiki_en_0[3-7].jsonl.bz2",
        is_inside=_about(LEGAL, NO_LAW),
        text=_after_the_first_paragraph,
    ),
    "security": Domain(
        development="arxiv_abstract_title/*.jsonl.bz2",
        test="arxiv_abstract_title/*.jsonl.bz2",
        is_inside=lambda record: record["category"] == "cs.CR",
        text=lambda record: record["abstract"],
    ),
}


def domain_set(corpora: Path, name: str, part: str, *, seeds: int, inside: int, outside: int) -> DomainSet:
    """Seeds, and at most so many labelled documents inside and outside the domain, in random order.

    A third of the domain's documents, by a digest of their titles, may be seeds; the others are labelled ones.
    """
    domain = DOMAINS[name]
    found_seeds, found = [], []
    for record in _records(corpora, domain.development if part == "development" else domain.test, part):
        text = domain.text(record)
        if len(text) < LEAST_CHARACTERS:
            continue
        is_inside = domain.is_inside(record)
        if is_inside and digest("seed " + record["title"]) % 3 == 0:
            found_seeds.append(text)
        else:
            found.append(DomainDocument(text=text, inside=is_inside))
    chance = random.Random(f"{part} {name}")
    chance.shuffle(found_seeds)
    chance.shuffle(found)
    chosen = [d for d in found if d.inside][:inside] + [d for d in found if not d.inside][:outside]
    chance.shuffle(chosen)
    return DomainSet(seeds=found_seeds[:seeds], documents=chosen)


def _records(corpora: Path, pattern: str, part: str) -> Iterator[Record]:
    """Records of a part: files of their own, or where both have the same files one half by digest."""
    for path in sorted(corpora.glob(pattern)):
        for record in read_records(path, "title"):
            if not pattern.startswith("arxiv") or (digest(record["title"]) % 2 == 0) == (part == "development"):
                yield record
