"""Mined tasks: a cloze answer stands in its context and not in its question; a lead is the passage's own sentence."""

from __future__ import annotations

import random

import pytest

from tests.training.tiny_corpora import chinese, paragraph
from training.data.mining import (
    PASSAGE_CHARACTERS,
    PASSAGE_CHARACTERS_ZH,
    central_sentence,
    cloze_question,
    lead_pair,
    passages,
    wh_word,
)
from training.data.prepare import mine
from training.data.readers import Document, Question

ENGLISH = [
    Document(document=f"en {n}", text="\n".join(paragraph(random.Random(n + k)) for k in range(4))) for n in range(30)
]
CHINESE = [
    Document(document=f"zh {n}", text="\n".join(chinese(random.Random(n + k)) for k in range(2))) for n in range(30)
]
BOTH = pytest.mark.parametrize(("documents", "is_chinese"), [(ENGLISH, False), (CHINESE, True)])


def clozes(documents: list[Document], *, is_chinese: bool) -> list[Question]:
    """A question of every passage that has one."""
    limits = PASSAGE_CHARACTERS_ZH if is_chinese else PASSAGE_CHARACTERS
    made = (
        cloze_question(sentences, chance, document=document.document, chinese=is_chinese)
        for document in documents
        for chance in [random.Random(document.document)]
        for sentences in passages(document.text, limits)
    )
    return [question for question in made if question]


@BOTH
def test_a_cloze_answer_stands_in_the_context_where_it_says(documents: list[Document], is_chinese: bool) -> None:
    questions = clozes(documents, is_chinese=is_chinese)
    assert len(questions) > 20
    for question in questions:
        (answer,) = question.answers
        assert question.context[answer.start : answer.end] == answer.text


@BOTH
def test_a_cloze_question_does_not_tell_its_answer(documents: list[Document], is_chinese: bool) -> None:
    for question in clozes(documents, is_chinese=is_chinese):
        assert question.answers[0].text not in question.question
        assert question.question.endswith("？" if is_chinese else "?")


def test_a_sentence_that_names_its_answer_twice_is_not_asked_about() -> None:
    twice, once = "Some say Kelso is older than Kelso ever was told to be.", "There is a bridge near Kelso by now."
    questions = [cloze_question([twice, once], random.Random(seed), document="d", chinese=False) for seed in range(20)]
    assert {question.context for question in questions if question} == {twice}


def test_an_answer_inside_a_longer_word_does_not_count() -> None:
    sentences = ["The mill was built there in the year 1871 by two men.", "The number was 18710 for the whole of it."]
    assert cloze_question(sentences, random.Random(0), document="d", chinese=False) is None


def test_the_asked_sentence_leaves_the_context() -> None:
    for question in clozes(ENGLISH, is_chinese=False):
        tail = question.question[-30:-1]
        assert tail not in question.context


@BOTH
def test_mining_twice_gives_the_same(documents: list[Document], is_chinese: bool) -> None:
    first, again = mine(documents, chinese=is_chinese), mine(list(documents), chinese=is_chinese)
    assert first == again
    assert first[0]
    assert first[1]


def test_mining_does_not_depend_on_other_documents() -> None:
    alone, together = mine(ENGLISH[3:4], chinese=False), mine(ENGLISH, chinese=False)
    assert [q for q in together[0] if q.document == "en 3"] == alone[0]
    assert [p for p in together[1] if p.document == "en 3"] == alone[1]


@BOTH
def test_passages_keep_every_sentence_they_hold_in_order_and_size(documents: list[Document], is_chinese: bool) -> None:
    smallest, largest = PASSAGE_CHARACTERS_ZH if is_chinese else PASSAGE_CHARACTERS
    for document in documents:
        place = 0
        for sentences in passages(document.text, (smallest, largest)):
            assert smallest <= sum(len(each) + 1 for each in sentences) <= largest + len(sentences)
            for each in sentences:
                place = document.text.index(each, place) + len(each)


def test_a_lead_is_a_sentence_of_its_passage_with_or_without_it() -> None:
    sentences = [
        f"The {word} was carried over the long bridge to Kelso." for word in ("copper", "glass", "stone", "silver")
    ]
    kept = 0
    for seed in range(40):
        pair = lead_pair(sentences, random.Random(seed), document="d", chinese=False, first=True)
        assert pair is not None
        assert pair.targets == (sentences[0],)
        assert " ".join(sentences[1:]) in pair.source
        kept += sentences[0] in pair.source
    assert 8 <= kept <= 32


def test_short_passages_and_sentences_have_no_lead() -> None:
    long = ["The copper was carried over the long bridge to Kelso."] * 3
    assert lead_pair(long, random.Random(0), document="d", chinese=False, first=True) is None
    assert lead_pair(["Too short.", *long], random.Random(0), document="d", chinese=False, first=True) is None


def test_the_central_sentence_shares_most_words() -> None:
    sentences = ["Birds sing.", "The old bridge crossed the river at Kelso.", "The river is wide.", "A bridge was old."]
    assert central_sentence(sentences) == 1


@pytest.mark.parametrize(
    ("answer", "is_chinese", "words"),
    [
        ("1871", False, {"what year", "when"}),
        ("2,500 people", False, {"how many", "what number", "how much"}),
        ("Kelso", False, {"what", "who", "which"}),
        ("1911年", True, {"哪一年"}),
        ("30公里", True, {"多少"}),
        ("《山海經》", True, {"什麼"}),
    ],
)
def test_the_question_word_fits_the_answer(answer: str, is_chinese: bool, words: set[str]) -> None:
    assert {wh_word(answer, random.Random(seed), chinese=is_chinese) for seed in range(40)} == words
