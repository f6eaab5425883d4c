"""Quality rules by language: Gopher's, FineWeb's and C4's from datatrove, and three that they lack.

Rules made for English count words between spaces, stop words and full stops; for Chinese each has its own limits, or
is left out. Cheap rules come first. Limits that differ from the published ones say why.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter
from datatrove.pipeline.filters.base_filter import BaseFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

from training.data.pipeline.words import WORDS, split_words

QUALITY_LANGUAGES = ("en", "zh")
CHINESE_STOP_WORDS = list("的是在了和有一不為为與与於于之年以中人上也這这他")
UNREADABLE = re.compile(r"[\ufffd\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
CODE = re.compile(r"[{};<>=\\|]")
MOST_UNREADABLE, MOST_BAD, MOST_CODE = 0.002, 0.005, 0.03
"""Characters of a text that may be unreadable, mojibake by ftfy's heuristic, or a programming language's."""
CODE_LINE = re.compile(
    r"^(?:\s{4,}\S.*|.*[{}\\]|.*[=()\[\]].*;|.*\w\(.*\)|\s*(?:#|//|/\*|\*|<).*|\s*[})\]].*|.*\s[=+|&]{1,3}\s.*"
    r"|\s*(?:def|class|if|for|while|return|import|from|elif|else|try|except|with|function|var|let|const)\b.*[:;,(])$"
)
MOST_CODE_LINES = 0.5
SENTENCE_END = re.compile(r"[.!?][\"'”’)\]]*(?=\s|$)|[。！？]")
MOST_WORDS_A_SENTENCE = 150
"""Mean words, or Chinese characters, a sentence; lists without full stops have hundreds. FineWeb's rule looks at the
ends of lines instead, and drops prose that is wrapped at a fixed width."""
LEAST_DIFFERENT_WORDS = 0.12
"""Different words among the first 400: gibberish of few syllables, counters and tables lie below, prose above 0.3."""


def damage_of(text: str) -> str | None:
    """Name of what makes a text unreadable, or None."""
    from ftfy.badness import badness

    if len(UNREADABLE.findall(text)) > MOST_UNREADABLE * len(text):
        return "unreadable_characters"
    if badness(text) > MOST_BAD * len(text):
        return "mojibake"
    if len(CODE.findall(text)) > MOST_CODE * len(text):
        return "code"
    lines = [line for line in text.split("\n") if line.strip()]
    if len(lines) >= 8 and sum(1 for line in lines if CODE_LINE.match(line)) > MOST_CODE_LINES * len(lines):
        return "code"
    words = split_words(text)
    if len(words) > MOST_WORDS_A_SENTENCE * (1 + len(SENTENCE_END.findall(text))):
        return "few_sentences"
    words = words[:400]
    if len(words) >= 50 and len(set(words)) < LEAST_DIFFERENT_WORDS * len(words):
        return "few_different_words"
    return None


@lru_cache(maxsize=1)
def quality_rules() -> dict[str, list[BaseFilter]]:
    """Rules by language, in the order in which they are asked."""
    english: list[BaseFilter] = [
        # No longest document: a book is one.
        GopherQualityFilter(max_doc_words=None, max_non_alpha_words_ratio=0.65, language=WORDS),
        # Repeated lines are the repetition rules' subject; 0.01 drops every article with two headings "History.".
        FineWebQualityFilter(line_punct_thr=0, char_duplicates_ratio=0.1, short_line_thr=0.85, language=WORDS),
        # As in FineWeb, lines without a full stop stay: verse and headings have none. Brackets are counted above.
        C4QualityFilter(
            filter_no_terminal_punct=False,
            filter_curly_bracket=False,
            min_num_sentences=2,
            min_words_per_line=-1,
            remove_citations=False,
            language=WORDS,
        ),
        GopherRepetitionFilter(language=WORDS),
    ]
    chinese: list[BaseFilter] = [
        GopherQualityFilter(
            max_doc_words=None,
            min_avg_word_length=None,
            max_non_alpha_words_ratio=0.7,
            stop_words=CHINESE_STOP_WORDS,
            min_stop_words=3,
            language=WORDS,
        ),
        FineWebQualityFilter(
            line_punct_thr=0, char_duplicates_ratio=0.1, short_line_thr=0.85, short_line_length=10, language=WORDS
        ),
        C4QualityFilter(
            filter_no_terminal_punct=False,
            filter_curly_bracket=False,
            min_num_sentences=2,
            min_words_per_line=-1,
            remove_citations=False,
            language=WORDS,
        ),
        # A Chinese "word" is one character here, so runs are longer before they count as repeated.
        GopherRepetitionFilter(
            top_n_grams=((2, 0.2), (4, 0.3)), dup_n_grams=((10, 0.25), (15, 0.2), (20, 0.18)), language=WORDS
        ),
    ]
    return {"en": english, "zh": chinese}


class QualityFilter(BaseFilter):
    """Drops what the rules of a document's language drop; the reason is the rule's name."""

    name = "quality"

    def __init__(self, exclusion_writer: Any) -> None:
        super().__init__(exclusion_writer)

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document passes all rules; lines that C4 drops are taken out of those that do."""
        if damage := damage_of(doc.text):
            return False, damage
        for rule in quality_rules()[doc.metadata["language"]]:
            result = rule.filter(doc)
            if result is not True:
                return False, result[1] if isinstance(result, tuple) else rule.name
        return True
