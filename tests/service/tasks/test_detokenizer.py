"""Streamed text is plain text, whatever the tokens' borders and stop strings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.tasks.text import Detokenizer

FAMILY = "👩‍👩‍👧"
ACCENT = "é"
"""A letter and a combining mark."""

TEXTS = st.one_of(st.text(), st.text(alphabet="ab\n光👩é"))
STOPS = st.lists(st.text(alphabet="ab\n光", min_size=1, max_size=4), max_size=3)


@st.composite
def split_bytes(draw: st.DrawFn) -> list[bytes]:
    """Any bytes, most often those of a text, cut anywhere."""
    whole = draw(st.one_of(TEXTS.map(str.encode), st.binary()))
    cuts = sorted(draw(st.sets(st.integers(0, len(whole)))) | {0, len(whole)})
    return [whole[start:end] for start, end in itertools.pairwise(cuts)]


def stream(pieces: Sequence[bytes], stops: Sequence[str]) -> tuple[list[str], bool]:
    """What a client is sent, and whether a stop string ended it."""
    detokenizer = Detokenizer(pieces, stops)
    parts = []
    for token in range(len(pieces)):
        parts.append(detokenizer.add(token))
        if detokenizer.stopped:
            break
    return [*parts, detokenizer.finish()], detokenizer.stopped


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the stop string that is complete first."""
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    return text[: min(ends)[1]] if ends else text


@given(split_bytes(), STOPS)
@example([b"stop\xe5"], ["stop"])
@example([b"a", b"b", b"bc"], ["abc", "bb"])
@example([b"ab", b"a", b"c"], ["abac", "ac"])
def test_the_pieces_are_the_plain_text_up_to_the_first_stop_string(pieces: list[bytes], stops: list[str]) -> None:
    plain = b"".join(pieces).decode("utf-8", "replace")
    parts, stopped = stream(pieces, stops)
    assert "".join(parts) == cut_at_stop(plain, stops)
    assert stopped == any(stop in plain for stop in stops)


@given(split_bytes(), STOPS)
def test_no_piece_is_held_back_longer_than_it_may_begin_a_stop_string(pieces: list[bytes], stops: list[str]) -> None:
    detokenizer, sent = Detokenizer(pieces, stops), ""
    for count in range(1, len(pieces) + 1):
        sent += detokenizer.add(count - 1)
        if detokenizer.stopped:
            return
        complete = b"".join(pieces[:count])
        known = complete.decode("utf-8", "replace")
        if complete.decode("utf-8", "ignore") != known:
            continue  # bytes that may yet become a code point, or never will
        begun = [size for stop in stops for size in range(1, len(stop)) if known.endswith(stop[:size])]
        assert sent == known[: len(known) - max(begun, default=0)]


@given(split_bytes(), STOPS)
def test_nothing_comes_after_a_stop_string(pieces: list[bytes], stops: list[str]) -> None:
    detokenizer = Detokenizer(pieces, stops)
    for token in range(len(pieces)):
        if detokenizer.stopped:
            assert detokenizer.add(token) == ""
        else:
            detokenizer.add(token)
    if detokenizer.stopped:
        assert detokenizer.finish() == ""


@pytest.mark.parametrize("text", [FAMILY, ACCENT, "光速", "🇫🇷", "a👍🏽b"])
def test_a_code_point_comes_when_its_last_byte_does(text: str) -> None:
    pieces = [bytes([byte]) for byte in text.encode()]
    parts, _ = stream(pieces, [])
    assert "".join(parts) == text
    assert [part for part in parts if part] == list(text)


def test_a_code_point_that_stays_incomplete_is_shown_as_such() -> None:
    assert stream([b"ok ", b"\xf0\x9f"], []) == (["ok ", "", "�"], False)


def test_special_tokens_have_no_text() -> None:
    assert stream([b"a", b"", b"b"], []) == (["a", "", "b", ""], False)
