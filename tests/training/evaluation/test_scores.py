"""Scores against cases worked out by hand."""

from __future__ import annotations

import pytest

from training.evaluation.scores import bleu, exact_match, f1, normalise, rouge


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Old, Mill!", "old mill"),
        ("a theatre and an anthem", "theatre and anthem"),
        ("U.S.A.", "usa"),
        ("don't", "dont"),
        ("the", ""),
        ("三十 万", "三十 万"),
    ],
)
def test_normalisation_is_squads(text: str, expected: str) -> None:
    assert normalise(text) == expected


def test_exact_match_takes_any_reference_after_normalisation() -> None:
    assert exact_match("the Old Mill.", ["a bridge", "old mill"]) == 1
    assert exact_match("old mills", ["old mill"]) == 0
    assert exact_match("", ["mill"]) == 0


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("the old mill", ["old mill"], 1.0),
        ("old mill near town", ["old mill"], 2 / 3),  # precision 2/4, recall 1
        ("mill mill", ["mill"], 2 / 3),  # a word counts as often as it stands in both
        ("bridge", ["old mill", "bridge over river"], 0.5),  # the better reference: 1, 1/3
        ("", ["mill"], 0.0),
        ("river", ["mill"], 0.0),
        ("三十万", ["三十萬"], 2 / 3),  # two of three characters, both ways
        ("约三十万公里", ["三十万公里"], 10 / 11),  # 5/6, 5/5
        ("1911年", ["1911年"], 1.0),
    ],
)
def test_f1_is_the_overlap_with_the_best_reference(answer: str, references: list[str], expected: float) -> None:
    assert f1(answer, references) == pytest.approx(expected)


def test_rouge_tells_the_best_reference_and_their_mean() -> None:
    # "the mill stands" and "the mill burned": 2 of 3 words, 1 of 2 pairs, a common run of 2; the other shares nothing.
    found = rouge(["the mill stands"], [["the mill burned", "ships sail"]])
    best = {"rouge1_best": 200 / 3, "rouge2_best": 50.0, "rougeL_best": 200 / 3}
    mean = {"rouge1_mean": 100 / 3, "rouge2_mean": 25.0, "rougeL_mean": 100 / 3}
    assert found == pytest.approx(best | mean)


def test_rouge_is_a_mean_over_texts_and_stems_words() -> None:
    found = rouge(["mills", "nothing"], [["mill"], ["other"]])
    assert found["rouge1_best"] == pytest.approx(50.0)


def test_bleu_is_100_for_the_reference_and_0_for_no_shared_word() -> None:
    text = "the old mill stands near the river"
    assert bleu([text], [[text]]) == pytest.approx(100.0)
    assert bleu(["ships sail"], [[text]]) == pytest.approx(0.0)


def test_bleu_counts_every_reference_where_texts_have_unequal_numbers() -> None:
    one, two = "the old mill stands near the river", "ships sail along the northern coast today"
    assert bleu([one, two], [["nothing at all", one], [two]]) == pytest.approx(100.0)
    assert bleu([one, two], [["nothing at all"], [two]]) < 80
