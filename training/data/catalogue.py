"""The corpora that training knows: where each lies under the data folder, what it is used for, and its licence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Use(StrEnum):
    """What a corpus teaches."""

    TEXT = "text"
    """Plain documents for masked tokens and continuation; Wikipedia also yields cloze questions and leads."""
    QA = "qa"
    SUMMARY = "summary"
    INSTRUCTION = "instruction"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One corpus."""

    name: str
    pattern: str
    """Its files, as a glob under the data folder."""
    use: Use
    licence: str
    origin: str
    """Where it was taken from, for the model card."""
    has_development_part: bool = False
    """True where the publisher made the split: files with `_dev` in their names are never trained on."""
    mines_tasks: bool = False
    """True where cloze questions and lead sentences are made from its paragraphs."""
    is_derived: bool = False
    """True where documents were made from other corpora's: those of held-out titles are left out."""


SOURCES: tuple[Source, ...] = (
    Source(
        name="wikipedia_en",
        pattern="wikipedia_en/*.jsonl.bz2",
        use=Use.TEXT,
        licence="CC BY-SA 3.0",
        origin="English Wikipedia, early 2015",
        mines_tasks=True,
    ),
    Source(
        name="wikipedia_zh",
        pattern="wikipedia_zh/*.jsonl.bz2",
        use=Use.TEXT,
        licence="CC BY-SA 3.0",
        origin="Chinese Wikipedia",
        mines_tasks=True,
    ),
    Source(
        name="books_en",
        pattern="books_en/*.jsonl.bz2",
        use=Use.TEXT,
        licence="public domain",
        origin="mlschmitt/classic-books-markdown",
    ),
    Source(
        name="openstax_en",
        pattern="openstax_en/*.jsonl.bz2",
        use=Use.TEXT,
        licence="CC BY-NC-SA 4.0",
        origin="OpenStax history, sociology and psychology textbooks",
    ),
    Source(
        name="own_text",
        pattern="own_text/*.jsonl.bz2",
        use=Use.TEXT,
        licence="not known to Trident",
        origin="texts of the user's own, as `trident data filter` collects them",
    ),
    Source(
        name="augmented",
        pattern="augmented/*.jsonl.bz2",
        use=Use.TEXT,
        licence="of the texts translated",
        origin="back-translations of the other texts",
        is_derived=True,
    ),
    Source(
        name="squad",
        pattern="squad_v1.1/squad_v1.1_dev*.json.bz2",
        use=Use.QA,
        licence="CC BY-SA 4.0",
        origin="SQuAD 1.1",
    ),
    Source(
        name="squad_subset",
        pattern="squad_v1.1/squad_subset*.json.bz2",
        use=Use.QA,
        licence="CC BY-SA 4.0",
        origin="SQuAD 1.1, a part of its training split",
    ),
    Source(
        name="squadshifts_wiki",
        pattern="squadshifts/new_wiki*.json.bz2",
        use=Use.QA,
        licence="none stated",
        origin="SquadShifts, Wikipedia part",
    ),
    Source(
        name="squadshifts_other",
        pattern="squadshifts/[ar]*.json.bz2",
        use=Use.QA,
        licence="none stated",
        origin="SquadShifts, Reddit and Amazon parts",
    ),
    Source(name="qamr", pattern="qa_aux/qamr*.json.bz2", use=Use.QA, licence="MIT", origin="QAMR"),
    Source(name="policyqa", pattern="qa_aux/policyqa*.json.bz2", use=Use.QA, licence="MIT", origin="PolicyQA"),
    Source(
        name="friendsqa", pattern="qa_aux/friendsqa*.json.bz2", use=Use.QA, licence="none stated", origin="FriendsQA"
    ),
    Source(name="subjqa", pattern="qa_aux/subjqa*.json.bz2", use=Use.QA, licence="none stated", origin="SubjQA"),
    Source(name="cmrc2018", pattern="cmrc2018/*.json.bz2", use=Use.QA, licence="CC BY-SA 4.0", origin="CMRC 2018"),
    Source(name="drcd", pattern="drcd/*.json.bz2", use=Use.QA, licence="CC BY-SA 3.0", origin="DRCD"),
    Source(name="xquad_zh", pattern="xquad_zh/*.json.bz2", use=Use.QA, licence="CC BY-SA 4.0", origin="XQuAD, Chinese"),
    Source(
        name="dialogsum",
        pattern="dialogsum/*.jsonl.bz2",
        use=Use.SUMMARY,
        licence="CC BY-NC-SA 4.0",
        origin="DialogSum",
        has_development_part=True,
    ),
    Source(
        name="scitldr",
        pattern="scitldr/*.jsonl.bz2",
        use=Use.SUMMARY,
        licence="Apache-2.0",
        origin="SciTLDR",
        has_development_part=True,
    ),
    Source(
        name="bbc_summary",
        pattern="bbc_summary/*.jsonl.bz2",
        use=Use.SUMMARY,
        licence="none stated (research use)",
        origin="BBC News Summary",
    ),
    Source(
        name="alpaca",
        pattern="alpaca_en_zh/*.jsonl.bz2",
        use=Use.INSTRUCTION,
        licence="CC BY-NC 4.0",
        origin="Stanford Alpaca, English and Chinese",
    ),
    Source(
        name="arxiv_titles",
        pattern="arxiv_abstract_title/*.jsonl.bz2",
        use=Use.INSTRUCTION,
        licence="none stated (arXiv metadata)",
        origin="arXiv abstracts and titles",
    ),
    Source(
        name="aeslc",
        pattern="aeslc/*.jsonl.bz2",
        use=Use.INSTRUCTION,
        licence="CC BY-NC-SA 4.0",
        origin="AESLC e-mail subjects",
        has_development_part=True,
    ),
)

TOKENIZER_SAMPLE: dict[str, tuple[int, int]] = {
    "wikipedia_en": (8, 20_000),
    "wikipedia_zh": (2, 20_000),
    "books_en": (8, 100_000),
    "alpaca": (4, 4_000),
    "dialogsum": (4, 4_000),
}
"""Source → (every n-th document, characters at most of each): what the tokenizer learns its merges from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file of a corpus."""

    source: Source
    path: Path

    @property
    def name(self) -> str:
        """File name without its suffixes; unique over all corpora."""
        return self.path.name.split(".jsonl")[0].split(".json")[0]

    @property
    def is_development(self) -> bool:
        """Whether the publisher calls this file a development part."""
        return self.source.has_development_part and "_dev" in self.path.name


def find_files(root: Path, sources: Iterable[Source] = SOURCES) -> list[SourceFile]:
    """Files of the corpora under `root`, largest first, so that parallel workers finish together.

    Raises ValueError where there is none.
    """
    found = [SourceFile(source=source, path=path) for source in sources for path in sorted(root.glob(source.pattern))]
    if not found:
        raise ValueError(f"{root} holds none of the known corpora, such as {SOURCES[0].pattern}")
    return sorted(found, key=lambda file: -file.path.stat().st_size)


def find_source(name: str) -> Source:
    """The source called `name`."""
    return next(source for source in SOURCES if source.name == name)


def licences(used: Iterable[str]) -> list[dict[str, str]]:
    """The sources of these names with origin and licence, for the model card."""
    names = set(used)
    return [
        {"name": source.name, "origin": source.origin, "licence": source.licence}
        for source in SOURCES
        if source.name in names
    ]


def weights_licence(sources: Iterable[dict[str, str]]) -> str:
    """SPDX name of the strictest licence among the sources: what weights trained on them carry."""
    stated = [source["licence"] for source in sources]
    if any("NC" in licence for licence in stated):
        return "CC-BY-NC-SA-4.0"
    return "CC-BY-SA-4.0" if any("SA" in licence for licence in stated) else "Apache-2.0"
