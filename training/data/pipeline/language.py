"""Which language a document is written in, by py3langid, whose model lies in its wheel."""

from __future__ import annotations

import re
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

SAMPLE_CHARACTERS = 1_500
"""Characters looked at: more cost time and decided no other document of the development part."""
NO_LETTERS = re.compile(r"[\d_]+|https?://\S+")


CHINESE = ("wuu", "yue", "gan", "lzh", "hak", "nan")
"""Chinese languages that are written with the same characters, which short texts are taken for."""


def language_of(text: str) -> str:
    """ISO 639-1 code of a text's language; `zxx` for what is no language."""
    from py3langid import classify

    middle = max(0, len(text) - SAMPLE_CHARACTERS) // 2
    sample = NO_LETTERS.sub(" ", text[middle : middle + SAMPLE_CHARACTERS])
    found = str(classify(sample)[0])
    return "zh" if found in CHINESE else found


class LanguageFilter(BaseFilter):
    """Keeps the given languages and notes each document's in its metadata."""

    name = "language"

    def __init__(self, languages: list[str], exclusion_writer: Any) -> None:
        super().__init__(exclusion_writer)
        self.languages = languages

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        """Whether a document's language is one to keep."""
        language = language_of(doc.text)
        doc.metadata["language"] = language
        return True if language in self.languages else (False, f"language_{language}")
