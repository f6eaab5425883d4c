"""Where texts are cut: often enough, and never where the tokenizer's pattern would notice."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model.tokenizer import load_tokenizer
from service.tasks.borders import holds_border, next_border, pieces


@pytest.fixture(scope="session")
def tokenizer(tokenizer_folder) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


def splits(tokenizer: Tokenizer, text: str, begin: int = 0) -> list[tuple[int, int]]:
    """What the tokenizer's pattern makes of a text: within these, and nowhere else, bytes are merged."""
    return [(begin + start, begin + end) for _, (start, end) in tokenizer.pre_tokenizer.pre_tokenize_str(text)]


SIGNS = st.text(alphabet="ab'stlvre019.,!-_ \n\t\r\x1c\x85\u3000\u200bé\u0301光速。，«👩²٣ǅ", max_size=40)


def test_a_cut_divides_no_split_and_changes_none(tokenizer: Tokenizer) -> None:
    @given(st.one_of(SIGNS, st.text(max_size=40)))
    @example("don't.'s 'd1 '. 's'")
    @example("12345.67890a1b22222 3\n\n\n4  \n five")
    def check(text: str) -> None:
        whole = splits(tokenizer, text)
        for at in range(1, len(text)):
            if next_border(text, at) == at:
                assert splits(tokenizer, text[:at]) + splits(tokenizer, text[at:], at) == whole

    check()


@pytest.mark.parametrize(
    "text",
    ["光在真空中的速度约为每秒三十万公里。" * 100, "a.b," * 500, "x1" * 1000, "word\n" * 500, "one, two; " * 200],
    ids=["Chinese", "punctuation", "digits", "lines", "words"],
)
def test_a_text_without_spaces_is_cut_all_the_same(text: str) -> None:
    parts = list(pieces(text, 50))
    assert "".join(parts) == text
    assert max(map(len, parts)) < 100


@pytest.mark.parametrize("text", ["a" * 5000, "1" * 5000, "!" * 5000, "光速" * 2500, " " * 5000, "👩" * 5000])
def test_a_run_of_one_kind_stays_whole_up_to_its_end(text: str) -> None:
    assert list(pieces(text, 50)) == [text]
    assert len(next(pieces(f"{text}: {'x' * 80}", 50))) in (len(text), len(text) + 1)


def test_names_of_unused_tokens_are_never_cut() -> None:
    assert not any(holds_border(f"<unused_{index}>") for index in (0, 7, 31999))
    assert holds_border("a.b")
