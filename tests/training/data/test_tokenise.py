"""Rows: answer tokens decode to the answer, windows hold it or say that they do not, targets end."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model.tokenizer import EOS, SEP, decode
from tests.training.tiny_corpora import WORDS
from training.data.readers import Answer, Pair, Question
from training.data.shards import PAIR_ROW, QA_ROW
from training.data.tokenise import (
    MAX_SOURCE,
    MAX_TARGET,
    ShardBuilder,
    answer_tokens,
    context_windows,
    encode_documents,
    encode_pairs,
    encode_questions,
    training_windows,
)

CONTEXT = " ".join(f"{word} {number}" for number, word in enumerate(WORDS * 2)) + " 光年 😀 cafe\u0301 end."


def ask(answer: str | None, context: str = CONTEXT, asked: str = "what is it?") -> Question:
    answers = () if answer is None else (Answer(start=context.index(answer), text=answer),)
    return Question(identifier="q", document="d", question=asked, context=context, answers=answers)


def rows_of(tokenizer: Tokenizer, *questions: Question, window: int = 64) -> list[tuple[np.void, list[int]]]:
    """Every row with the tokens it names."""
    builder = ShardBuilder(QA_ROW)
    encode_questions(tokenizer, questions, builder, window)
    if not builder.rows:
        return []
    tokens = np.concatenate(builder.tokens)
    return [(row, tokens[row["offset"] : row["offset"] + row["length"]].tolist()) for row in builder.as_rows()]


@pytest.mark.parametrize("answer", ["river 0", "engine", "光年", "😀", "cafe\u0301", "end."])
def test_answer_tokens_decode_to_the_answer_in_every_window_that_holds_it(tokenizer: Tokenizer, answer: str) -> None:
    rows = rows_of(tokenizer, ask(answer))
    held = [(row, ids) for row, ids in rows if row["answer_end"] > 0]
    assert held
    for row, ids in held:
        assert row["context"] <= row["answer_begin"] < row["answer_end"] <= row["length"]
        assert decode(tokenizer, ids[row["answer_begin"] : row["answer_end"]]).strip() == answer


def test_a_window_without_the_answer_says_so_and_lacks_its_text(tokenizer: Tokenizer) -> None:
    rows = rows_of(tokenizer, ask("光年"))
    without = [(row, ids) for row, ids in rows if row["answer_end"] < 0]
    assert len(without) == 1
    row, ids = without[0]
    assert (row["answer_begin"], row["answer_end"]) == (-1, -1)
    assert "光" not in decode(tokenizer, ids[row["context"] :])


def test_rows_are_question_separator_and_a_part_of_the_context(tokenizer: Tokenizer) -> None:
    for row, ids in rows_of(tokenizer, ask("engine"), ask("harbour", asked="where?")):
        head = row["context"]
        assert ids[head - 1] == SEP
        assert decode(tokenizer, ids[: head - 1]) in ("what is it?", "where?")
        assert decode(tokenizer, ids[head:]) in CONTEXT
        assert len(ids) == row["length"] <= 63


def test_a_question_without_answers_is_one_row_that_says_so(tokenizer: Tokenizer) -> None:
    ((row, _),) = rows_of(tokenizer, ask(None))
    assert (row["answer_begin"], row["answer_end"]) == (-1, -1)


def test_a_question_that_leaves_a_context_no_room_is_left_out(tokenizer: Tokenizer) -> None:
    assert rows_of(tokenizer, ask("engine", asked=" ".join(WORDS * 2))) == []


def test_an_answer_that_ends_inside_a_token_keeps_the_whole_token(tokenizer: Tokenizer) -> None:
    context = tokenizer.encode("the engine runs", add_special_tokens=False)
    question = ask("engi", context="the engine runs")
    span = answer_tokens(question, context)
    assert span is not None
    begin, end = context.offsets[span[0]][0], context.offsets[span[1] - 1][1]
    assert "engi" in "the engine runs"[begin:end]


@given(st.integers(0, 400), st.integers(1, 80))
def test_windows_cover_the_context_and_overlap_by_half(length: int, room: int) -> None:
    windows = list(context_windows(length, room))
    assert windows[0][0] == 0
    assert windows[-1][1] == length
    assert all(0 <= end - begin <= room for begin, end in windows)
    for (begin, end), (following, _) in itertools.pairwise(windows):
        assert following - begin == max(1, room // 2)
        assert following <= end


@given(st.integers(1, 400), st.integers(8, 80), st.data())
def test_training_windows_hold_the_answer_or_none_of_it(length: int, room: int, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(begin + 1, min(length, begin + room // 2)))
    windows = training_windows(length, room, (begin, end))
    holding = [w for w in windows if w[0] <= begin and end <= w[1]]
    assert holding
    assert all(w in holding or w[1] <= begin or end <= w[0] for w in windows)
    assert len(windows) - len(holding) <= 1
    assert len(training_windows(length, room, None)) == 1


def test_pairs_have_a_row_for_each_target_that_ends(tokenizer: Tokenizer) -> None:
    builder = ShardBuilder(PAIR_ROW)
    encode_pairs(tokenizer, [Pair(document="d", source="the river", targets=("a mill", "光年"))], builder)
    tokens = np.concatenate(builder.tokens)
    found = []
    for row in builder.as_rows():
        middle = row["offset"] + row["source_length"]
        target = tokens[middle : middle + row["target_length"]]
        assert target[-1] == EOS
        found.append((decode(tokenizer, tokens[row["offset"] : middle]), decode(tokenizer, target)))
    assert found == [("the river", "a mill"), ("the river", "光年")]


def test_long_pairs_are_cut_to_the_networks_limits(tokenizer: Tokenizer) -> None:
    builder = ShardBuilder(PAIR_ROW)
    text = " ".join(WORDS * 200)
    encode_pairs(tokenizer, [Pair(document="d", source=text, targets=(text,))], builder)
    (row,) = builder.as_rows()
    assert (row["source_length"], row["target_length"]) == (MAX_SOURCE, MAX_TARGET)
    assert builder.tokens[0][-1] == EOS


def test_documents_end_and_decode_to_themselves(tokenizer: Tokenizer) -> None:
    texts = [CONTEXT, "", "光年"]
    arrays = list(encode_documents(tokenizer, texts))
    assert [decode(tokenizer, array) for array in arrays] == texts
    assert all(array[-1] == EOS and array.dtype == np.uint16 for array in arrays)
