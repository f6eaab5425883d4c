"""Texts to tokens and back: any text, exact offsets, special tokens only where they are meant."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from model.tokenizer import SPECIAL_TOKENS
from service.batching.clock import LoopClock
from service.errors import DeadlineExceeded
from service.tasks.borders import pieces
from service.tasks.deadlines import until
from service.tasks.text import Detokenizer
from service.tasks.tokens import LONG_TEXT, Encoded, TextCodec

SPECIAL = {token: index for index, token in enumerate(SPECIAL_TOKENS)}
AWKWARD = ["", " ", "\x00", "é", "👩‍👩‍👧", "The bridge 光速 1871\r\n\t", "a" * 300, "‏العربية", "￿", "🇫🇷🇩🇪"]


@pytest.fixture(scope="session")
def codec(tokenizer_folder: Path) -> TextCodec:
    return TextCodec(tokenizer_folder, SPECIAL)


def text_of(codec: TextCodec, ids: Iterable[int]) -> str:
    detokenizer = Detokenizer(codec.token_bytes)
    return "".join([*map(detokenizer.add, ids), detokenizer.finish()])


def test_any_text_comes_back(codec: TextCodec) -> None:
    @given(st.text())
    def check(text: str) -> None:
        ids = asyncio.run(codec.encode(text)).ids
        assert text_of(codec, ids) == text

    for text in AWKWARD:
        check = example(text)(check)
    check()


def test_offsets_are_the_code_points_that_a_token_touches(codec: TextCodec) -> None:
    @given(st.one_of(st.text(), st.text(alphabet="ab é光👩\n")))
    def check(text: str) -> None:
        encoded = asyncio.run(codec.encode(text))
        assert encoded.ids.dtype == encoded.offsets.dtype == np.int64
        assert encoded.offsets.shape == (len(encoded.ids), 2)
        owner = [place for place, letter in enumerate(text) for _ in letter.encode()]
        at = 0
        for index, (start, end) in zip(encoded.ids.tolist(), encoded.offsets.tolist(), strict=True):
            behind = at + len(codec.token_bytes[index])
            assert (start, end) == (owner[at], owner[behind - 1] + 1)
            at = behind
        assert at == len(owner)

    for text in AWKWARD:
        check = example(text)(check)
    check()


@pytest.mark.parametrize("token", [*SPECIAL_TOKENS, "<unused_3>"])
async def test_a_special_tokens_name_in_a_text_is_plain_text(codec: TextCodec, token: str) -> None:
    text = f"before {token} after{token}"
    encoded = await codec.encode(text)
    assert not set(encoded.ids.tolist()) & set(SPECIAL.values())
    assert text_of(codec, encoded.ids) == text


def test_every_id_has_bytes_but_the_special_ones(codec: TextCodec) -> None:
    assert codec.vocabulary == 32_000
    empty = [index for index, piece in enumerate(codec.token_bytes) if not piece]
    assert empty == list(SPECIAL.values())
    assert {bytes([byte]) for byte in range(256)} <= set(codec.token_bytes)
    assert text_of(codec, SPECIAL.values()) == ""


@pytest.mark.parametrize(
    "text",
    ["The bridge was built in 1871. 光速 " * 700, "a" * 20_000, "word\n" * 4_000, "光速。" * 5_000, " " * 20_000],
    ids=["mixed", "no border", "lines", "no space", "only space"],
)
async def test_long_texts_have_the_tokens_that_they_have_in_one_piece(codec: TextCodec, text: str) -> None:
    assert len(text) >= LONG_TEXT
    encoded, whole = await codec.encode(text), codec._encode(text, 0)
    np.testing.assert_array_equal(encoded.ids, whole.ids)
    np.testing.assert_array_equal(encoded.offsets, whole.offsets)


def test_a_cut_changes_no_token(codec: TextCodec) -> None:
    @given(st.text(alphabet="ab1_'s. \n\t\x1c\u3000é́光。²"), st.integers(1, 6))
    def check(text: str, size: int) -> None:
        parts = list(pieces(text, size))
        assert "".join(parts) == text
        found = [token for part in parts for token in codec._encode(part, 0).ids.tolist()]
        assert found == codec._encode(text, 0).ids.tolist()

    check()


async def test_a_long_text_keeps_neither_others_nor_the_loop_waiting(codec: TextCodec) -> None:
    long = asyncio.create_task(codec.encode("word " * 100_000))
    await asyncio.sleep(0)
    short = await codec.encode("word " * (LONG_TEXT // 4))
    assert not long.done()
    assert len(short.ids) >= LONG_TEXT // 4
    long.cancel()


async def test_a_text_without_borders_keeps_no_other_long_text_waiting(codec: TextCodec) -> None:
    endless = asyncio.create_task(codec.encode("a" * 1_000_000))
    await asyncio.sleep(0)
    await codec.encode("word " * LONG_TEXT)
    assert not endless.done()
    assert len((await endless).ids) > 0


def test_no_text_has_fewer_tokens_than_its_bytes_allow(codec: TextCodec) -> None:
    longest_word = max(filter(bytes.isascii, codec.token_bytes), key=len).decode()

    @given(st.text())
    def check(text: str) -> None:
        assert codec.fewest_tokens(text) <= len(asyncio.run(codec.encode(text)).ids)

    for text in (*AWKWARD, longest_word * 50):
        check = example(text)(check)
    check()
    assert codec.longest_token == max(map(len, codec.token_bytes))


async def test_a_deadline_ends_an_encoding_between_two_pieces(codec: TextCodec, monkeypatch) -> None:
    encode, begun, may_end = codec._encode, [], threading.Event()

    def held_up(text: str, begin: int) -> Encoded:
        begun.append(begin)
        may_end.wait(10)
        return encode(text, begin)

    monkeypatch.setattr(codec, "_encode", held_up)
    clock = LoopClock()
    with pytest.raises(DeadlineExceeded):
        async with until(clock.now_s() + 0.02, clock):
            await codec.encode("word " * LONG_TEXT)
    may_end.set()
    await codec.encode("word " * LONG_TEXT)
    assert begun.count(0) == 2
    assert len(begun) == 1 + len(list(pieces("word " * LONG_TEXT, LONG_TEXT)))


async def test_nothing_is_begun_behind_the_deadline() -> None:
    clock = LoopClock()
    with pytest.raises(DeadlineExceeded):
        async with until(clock.now_s() - 0.001, clock):
            pytest.fail("the block has begun")


def test_an_added_token_that_a_cut_may_divide_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    data = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    (tmp_path / "tokenizer.json").write_text(json.dumps(with_added_token(data, "v1.5")), encoding="utf-8")
    with pytest.raises(ValueError, match=r"added token 'v1\.5', which a cut may divide"):
        TextCodec(tmp_path, SPECIAL)


def test_a_tokenizer_that_changes_texts_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    data = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["normalizer"] = {"type": "Lowercase"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match="changes the texts that it reads"):
        TextCodec(tmp_path, SPECIAL)


def with_added_token(data: dict, content: str) -> dict:
    token = {"id": 32_000, "content": content, "special": False, "single_word": False, "lstrip": False}
    return {**data, "added_tokens": [*data["added_tokens"], {**token, "rstrip": False, "normalized": False}]}


def test_a_damaged_tokenizer_is_named(tokenizer_folder: Path, tmp_path: Path) -> None:
    whole = (tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8")
    for text in ("", "{}", "[1, 2]", whole[: len(whole) // 2], whole.replace('"BPE"', '"Oracle"')):
        (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=r"tokenizer\.json cannot be loaded .*: fetch or export the bundle again"):
            TextCodec(tmp_path, SPECIAL)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be loaded"):
        TextCodec(tmp_path, SPECIAL)


def test_special_tokens_of_other_ids_are_refused(tokenizer_folder: Path) -> None:
    for special in ({"<qa>": 7}, {"<oracle>": 3}):
        with pytest.raises(ValueError, match=r"has no token <(qa|oracle)> of id"):
            TextCodec(tokenizer_folder, special)


def test_a_vocabulary_that_is_not_of_bytes_is_refused(tokenizer_folder: Path, tmp_path: Path) -> None:
    data = json.loads((tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8"))
    data["added_tokens"].append(
        {"id": 32_000, "content": "光 速", "special": False, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False}
    )  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(ValueError, match="is no byte-level vocabulary"):
        TextCodec(tmp_path, SPECIAL)
