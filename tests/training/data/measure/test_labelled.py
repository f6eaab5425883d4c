"""Labels follow from how documents are made: copies are copies, the first of a group is kept, parts share nothing."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.training.data.pipeline.prose import chinese, english, write_texts
from training.data.measure.domains import MEDICAL, PERSON
from training.data.measure.filtering import accuracy
from training.data.measure.labelled import (
    Amounts,
    Labelled,
    exact_copy,
    in_reading_order,
    labelled_documents,
    near_copy,
)
from training.data.pipeline.settings import load_settings
from training.data.pipeline.words import split_words


def shared(one: str, other: str) -> float:
    """Part of the runs of five words that two texts share."""
    runs = []
    for text in (one, other):
        words = split_words(text.lower())
        runs.append({tuple(words[at : at + 5]) for at in range(len(words) - 4)})
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


@pytest.mark.parametrize("seed", range(12))
def test_near_copies_differ_and_share_most(seed: int) -> None:
    for text in (english(seed, 40), chinese(seed, 40)):
        copy = near_copy(text, random.Random(seed))
        assert split_words(copy) != split_words(text)
        assert shared(text, copy) > 0.8


@pytest.mark.parametrize("seed", range(6))
def test_exact_copies_have_the_same_words(seed: int) -> None:
    text = english(seed)
    assert split_words(exact_copy(text, random.Random(seed)).lower()) == split_words(text.lower())


def test_the_first_of_a_group_is_kept() -> None:
    copy = Labelled(text="copy", kind="near_duplicate", keep=False, group=3)
    original = Labelled(text="original", kind="clean", keep=True, group=3)
    alone = Labelled(text="alone", kind="clean", keep=True, group=4)
    ordered = in_reading_order([copy, alone, original])
    assert [(d.text, d.kind, d.keep) for d in ordered] == [
        ("copy", "clean", True),
        ("alone", "clean", True),
        ("original", "near_duplicate", False),
    ]


def test_parts_share_no_document_and_errors_are_counted(tmp_path: Path) -> None:
    write_texts(tmp_path / "corpora/wikipedia_en/wiki_en_03.jsonl", (english(n, 30) for n in range(40)))
    amounts = Amounts(
        english=(("wikipedia_en/*.jsonl", 12),), chinese=(), exact=2, near=2, hosts=0, personal=0, secret=0, abuse=0,
        language=0, junk_of_a_kind=0,
    )  # fmt: skip
    parts = [
        labelled_documents(tmp_path / "corpora", part, amounts, made_kinds=False) for part in ("development", "test")
    ]
    assert [len(part) for part in parts] == [16, 16]
    assert not {d.text for d in parts[0]} & {d.text for d in parts[1]}
    documents = [*parts[1], Labelled(text=english("wrongly labelled"), kind="junk", keep=False)]
    result = accuracy(documents, tmp_path / "run", load_settings(None, workers=1))
    assert result["documents"] == 17
    assert result["accuracy"] == pytest.approx(16 / 17)
    assert [wrong["kind"] for wrong in result["wrong"]] == ["junk"]
    assert result["to_drop"] == {"kept": 1, "dropped": 4}


def test_a_definition_tells_the_domain() -> None:
    assert MEDICAL.search("Gout is a form of inflammatory arthritis, a disease of the joints")
    assert not MEDICAL.search("A quarry is a place from which stone is taken")
    assert PERSON.search("Galen of Pergamon (129 – c. 1216) was a physician")
