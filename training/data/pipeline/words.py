"""Words for the rules that count them: Unicode words, and Chinese and Japanese characters one by one.

spaCy's tokenizer, datatrove's default for English, takes most of the time of the Gopher rules; this one regular
expression is some ten times faster, and the rules' limits are no finer than the difference.
"""

from __future__ import annotations

import re

from datatrove.utils.word_tokenizers import WordTokenizer

CHARACTERS = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
WORD = re.compile(rf"[{CHARACTERS}]|[^\W{CHARACTERS}]+(?:['’][^\W{CHARACTERS}]+)*")
SENTENCE_END = re.compile(r"(?<=[.!?][\s\"')\]])\s*(?=\S)|(?<=[。！？])(?=[^」』”’）。！？])|\n+")


def split_words(text: str) -> list[str]:
    """Words of a text, punctuation left out."""
    return WORD.findall(text)


def split_sentences(text: str) -> list[str]:
    """Sentences of a text, white space around them left out."""
    return [part.strip() for part in SENTENCE_END.split(text) if part.strip()]


class Words(WordTokenizer):
    """The same for datatrove's rules."""

    def word_tokenize(self, text: str) -> list[str]:
        """See `split_words`."""
        return split_words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """See `split_sentences`."""
        return split_sentences(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Where each sentence begins and ends."""
        spans, start = [], 0
        for sentence in split_sentences(text):
            begin = text.index(sentence, start)
            start = begin + len(sentence)
            spans.append((begin, start))
        return spans


WORDS = Words()
"""One object, so that datatrove's cache of split texts serves all rules of a document."""
