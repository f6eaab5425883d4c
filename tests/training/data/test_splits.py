"""Splits: by document, the same everywhere, and copies of held-out texts found by 13 words in a row."""

from __future__ import annotations

import subprocess
import sys

from hypothesis import given
from hypothesis import strategies as st

from training.data.splits import NGRAM, OverlapFilter, digest, held_out_articles, is_held_out, word_ngrams

TITLES = [f"Article {number}" for number in range(4_000)]
HELD_OUT = " ".join(f"word{number}" for number in range(30))


def test_about_one_document_in_a_hundred_is_held_out() -> None:
    assert 20 <= sum(map(is_held_out, TITLES)) <= 60
    assert not any(is_held_out(title, 0.0) for title in TITLES)
    assert all(is_held_out(title, 1.0) for title in TITLES)


def test_another_process_holds_out_the_same_documents() -> None:
    script = "from training.data.splits import digest; print(digest('條目 7'), digest('Article 7'))"
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == [str(digest("條目 7")), str(digest("Article 7"))]


@given(st.permutations(TITLES[:20]))
def test_held_out_articles_do_not_depend_on_their_order(titles: list[str]) -> None:
    kept = held_out_articles(titles + titles[:5])
    assert kept == held_out_articles(TITLES[:20])
    assert len(kept) == 8


def test_ngrams_are_runs_of_words_without_case_or_punctuation() -> None:
    assert list(word_ngrams("One, two; THREE!", 2)) == [("one", "two"), ("two", "three")]
    assert list(word_ngrams("one two", 3)) == []


def test_thirteen_words_in_a_row_are_a_copy_and_twelve_are_none() -> None:
    found = OverlapFilter([HELD_OUT])
    words = HELD_OUT.split()
    assert NGRAM == 13
    assert found.overlaps("before " + ", ".join(words[5:18]).upper() + " after")
    assert not found.overlaps("before " + " ".join(words[5:17]) + " after")
    assert not found.overlaps(" ".join([*words[5:11], "other", *words[11:18]]))


def test_nothing_overlaps_with_nothing_held_out() -> None:
    assert not OverlapFilter([]).overlaps(HELD_OUT)
    assert not OverlapFilter(["too short to count"]).overlaps("too short to count")
