"""Readers: every format as documents, questions or pairs, and damaged files named by line."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path
from typing import Any

import pytest

from tests.training.tiny_corpora import instruction, squad, write_json, write_lines
from training.data.readers import (
    Answer,
    Pair,
    Question,
    read_documents,
    read_pairs,
    read_questions,
    read_records,
)


def question(context: str, *answers: tuple[int, str], name: str = "q", asked: str = " Who? ") -> dict[str, Any]:
    found = [{"answer_start": start, "text": text} for start, text in answers]
    return {"context": context, "qas": [{"id": name, "question": asked, "answers": found}]}


def pairs_of(tmp_path: Path, source: str, *records: dict[str, Any]) -> list[Pair]:
    write_lines(tmp_path / "pairs.jsonl.bz2", list(records))
    return list(read_pairs(tmp_path / "pairs.jsonl.bz2", source))


def test_plain_and_compressed_lines_read_alike(tmp_path: Path) -> None:
    lines = '{"title": "光", "text": "é"}\n\n{"title": "b", "text": "c"}\n'
    (tmp_path / "a.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "a.jsonl.bz2").write_bytes(bz2.compress(lines.encode()))
    plain = list(read_records(tmp_path / "a.jsonl"))
    assert (
        plain
        == list(read_records(tmp_path / "a.jsonl.bz2"))
        == [
            {"title": "光", "text": "é"},
            {"title": "b", "text": "c"},
        ]
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"text": ', "line 2 is not JSON"), ("[1]", "line 2 must be an object"), ('{"text": "a"}', "title, text")],
)
def test_a_damaged_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"title": "a", "text": "b"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        list(read_documents(path))
    assert str(path) in str(caught.value)


LINES = b'{"title": "a", "text": "b"}\n' * 2_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl.bz2", bz2.compress(LINES)[:-9], "cut short"),
        ("a.jsonl.gz", gzip.compress(LINES)[:-9], "cut short"),
        ("a.jsonl.bz2", LINES, "is damaged, or not what its name says"),
        ("a.jsonl.gz", LINES, "is damaged, or not what its name says"),
        ("a.jsonl", LINES + b'{"title": "a", "text": "\xe9"}\n', r"is not UTF-8 \(byte 0xe9\)"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_records(path))
    assert str(path) in str(caught.value)


def test_a_question_file_that_is_cut_short_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.json.bz2"
    path.write_bytes(bz2.compress(b'{"data": [' + b" " * 100_000 + b"]}")[:-9])
    with pytest.raises(ValueError, match="cut short"):
        list(read_questions(path))


@pytest.mark.parametrize("content", ["{", "[]", '{"data": [{"paragraphs": [{}]}]}', '{"text": "a"}'])
def test_a_file_in_another_format_than_squads_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "squad.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{path} is not in SQuAD's format"):
        list(read_questions(path))


def test_emptied_brackets_leave_the_text(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl.bz2", [{"title": "t", "text": "Kelso (; ) lies north（，）of (see) it."}])
    (document,) = read_documents(tmp_path / "a.jsonl.bz2")
    assert document.text == "Kelso lies northof (see) it."


def test_spans_that_do_not_match_their_text_are_dropped(tmp_path: Path) -> None:
    paragraph = question("Anna met Ben.", (0, "Anna"), (5, "Ben"), (9, ""), (9, "Ben"))
    write_json(
        tmp_path / "q.json.bz2", squad([{"title": "a", "paragraphs": [paragraph]}, {"title": "b", "paragraphs": []}])
    )
    (read,) = read_questions(tmp_path / "q.json.bz2")
    assert read.answers == (Answer(start=0, text="Anna"), Answer(start=9, text="Ben"))
    assert (read.question, read.document) == ("Who?", "a")


def test_a_collection_of_one_title_counts_paragraphs_as_documents(tmp_path: Path) -> None:
    parts = [question("x" * 90, (0, "x")), question("y" * 90, (0, "y"))]
    write_json(tmp_path / "q.json.bz2", squad([{"title": "all", "paragraphs": parts}]))
    assert [each.document for each in read_questions(tmp_path / "q.json.bz2")] == ["x" * 80, "y" * 80]


def test_the_answer_is_the_one_most_annotators_gave() -> None:
    def answer_of(*texts: str) -> Answer | None:
        answers = tuple(Answer(start=0, text=text) for text in texts)
        return Question(identifier="", document="", question="", context="", answers=answers).answer

    assert answer_of("the old mill", "mill", "the old mill") == Answer(start=0, text="the old mill")
    assert answer_of("the old mill", "mill") == Answer(start=0, text="mill")
    assert answer_of() is None


def test_dialogues_carry_all_their_references(tmp_path: Path) -> None:
    (train,) = pairs_of(tmp_path, "dialogsum", {"fname": "train_0", "dialogue": "A: hi", "summary": "greets"})
    assert train == Pair(document="train_0", source="A: hi", targets=("greets",))
    (test,) = pairs_of(
        tmp_path, "dialogsum", {"fname": "d", "dialogue": "A", "summary1": "x", "summary2": "y", "summary3": "z"}
    )
    assert test.targets == ("x", "y", "z")


def test_glued_summaries_keep_their_first_two_sentences(tmp_path: Path) -> None:
    record = {"id": "b", "article": "text", "summary": 'Profits rose 7.5%.Sales fell."Odd," he said.'}
    (pair,) = pairs_of(tmp_path, "bbc_summary", record)
    assert pair.targets == ("Profits rose 7.5%. Sales fell.",)


def test_scientific_papers_keep_all_targets(tmp_path: Path) -> None:
    (pair,) = pairs_of(tmp_path, "scitldr", {"id": "s", "source": "long", "target": ["a", "b"]})
    assert pair == Pair(document="s", source="long", targets=("a", "b"))


def test_both_languages_of_an_instruction_are_one_document(tmp_path: Path) -> None:
    english, chinese = pairs_of(tmp_path, "alpaca", instruction("Count", "one", "一"))
    assert english == Pair(document="Count", source="Count", targets=("one",))
    assert chinese == Pair(document="Count", source="任務：Count\n\n輸入", targets=("一",))


@pytest.mark.parametrize("score", [None, 0, 4])
def test_translations_of_low_or_no_score_are_left_out(tmp_path: Path, score: float | None) -> None:
    assert len(pairs_of(tmp_path, "alpaca", instruction("Count", "one", "一", score))) == 1


def test_titles_and_subjects_are_asked_for(tmp_path: Path) -> None:
    (title,) = pairs_of(tmp_path, "arxiv_titles", {"id": 7, "abstract": "We prove.", "title": "On proofs"})
    assert (title.document, title.targets) == ("7", ("On proofs",))
    assert title.source.startswith("Write a title")
    assert title.source.endswith("We prove.")
    (subject,) = pairs_of(tmp_path, "aeslc", {"id": "m", "body": "Meet at 5.", "subject": "Meeting"})
    assert subject.source.startswith("Write a subject line")
    assert subject.targets == ("Meeting",)


def test_pairs_without_a_source_or_a_target_are_left_out(tmp_path: Path) -> None:
    records = [{"id": "a", "body": "  ", "subject": "x"}, {"id": "b", "body": "text", "subject": ""}]
    found = pairs_of(tmp_path, "scitldr", {"id": "s", "source": "  ", "target": ["a"]})
    assert found == []
    assert [pair.document for pair in pairs_of(tmp_path, "aeslc", *records)] == ["a"]
