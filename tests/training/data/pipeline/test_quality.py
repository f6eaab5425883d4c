"""Quality rules: prose of both languages passes, each kind of junk does not."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from datatrove.data import Document
from hypothesis import given
from hypothesis import strategies as st

from tests.training.data.pipeline.prose import chinese, english
from training.data.measure import junk
from training.data.measure.made import Makers
from training.data.pipeline.language import LanguageFilter, language_of
from training.data.pipeline.quality import QualityFilter
from training.data.pipeline.words import WORDS, split_sentences, split_words


def decide(text: str) -> bool | tuple[bool, str]:
    """What language and quality rules say together."""
    document = Document(text=text, id="0")
    result = LanguageFilter(["en", "zh"], None).filter(document)
    return QualityFilter(None).filter(document) if result is True else result


@pytest.mark.parametrize("seed", range(5))
def test_prose_passes_in_both_languages(seed: int) -> None:
    assert decide(english(seed)) is True
    assert decide(chinese(seed)) is True


def test_prose_wrapped_at_a_fixed_width_passes() -> None:
    words, lines = english("wrapped").split(), [""]
    for word in words:
        if len(lines[-1]) > 60:
            lines.append("")
        lines[-1] += word + " "
    assert decide("\n".join(lines)) is True


@pytest.mark.parametrize("kind", [*junk.KINDS, "code"])
def test_junk_is_dropped(kind: str) -> None:
    sentences = [s for n in range(30) for text in (english(n), chinese(n)) for s in split_sentences(text)]
    makers = Makers(part="development", hosts=[], sentences=sentences)
    chance = random.Random(f"tests {kind}")
    for _ in range(3):
        text = makers.code() if kind == "code" else junk.KINDS[kind](chance, sentences)
        result = decide(text)
        assert result is not True, text[:200]


def test_text_itself_is_not_changed_by_the_rules() -> None:
    document = Document(text=english("kept"), id="0", metadata={"language": "en"})
    assert QualityFilter(None).filter(document) is True
    assert document.text == english("kept")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Le marché de la ville était plein de gens qui achetaient des légumes et du pain pour la semaine.", "fr"),
        ("澀野丸山古墳是位於日本德島縣德島市的一座前方後圓墳，屬於澀野古墳群。", "zh"),
        ("The market of the town was full of people who bought vegetables for the week.", "en"),
    ],
)
def test_languages_are_told_apart(text: str, language: str) -> None:
    assert language_of(text) == language


def test_chinese_characters_are_words_of_their_own() -> None:
    assert split_words("In 2015年 the 國家's door, don't") == [
        "In",
        "2015",
        "年",
        "the",
        "國",
        "家",
        "s",
        "door",
        "don't",
    ]


@given(st.text())
def test_sentences_lie_in_their_text_in_order(text: str) -> None:
    spans = WORDS.span_tokenize(text)
    assert [text[begin:end] for begin, end in spans] == WORDS.sent_tokenize(text)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))
