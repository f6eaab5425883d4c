"""The tokenizer: a fixed vocabulary, any text and back, offsets in code points, and loaders that agree."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from model.tokenizer import (
    SPECIAL_TOKENS,
    VOCABULARY_SIZE,
    batches,
    check_text,
    decode,
    encode,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
AWKWARD = (
    "👩‍👩‍👧‍👦 family, 🇩🇪 flag",
    "e\u0301 is not é, nor o\u0308 ö",
    "光年　用来表示恒星之间的距离。",
    " two  spaces\tand\r\n\r\nlines ",
    "NUL \x00 and \ufffd",
    "don't stop in 1871, or 12345678",
)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> Tokenizer:
    return load_tokenizer(tokenizer_folder)


@pytest.mark.parametrize("texts", [(), ("a",), ("The mill, the mill, the mill.", "光年")])
def test_the_vocabulary_has_its_exact_size_however_small_the_texts(texts: tuple[str, ...]) -> None:
    trained = train_tokenizer(texts, 600)
    assert trained.get_vocab_size() == 600
    assert sorted(trained.get_vocab().values()) == list(range(600))


def test_the_vocabulary_of_the_network_is_filled(tokenizer: Tokenizer) -> None:
    assert tokenizer.get_vocab_size() == VOCABULARY_SIZE == 32_000


def test_special_tokens_have_the_first_ids_in_their_order(tokenizer: Tokenizer) -> None:
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(16))
    assert SPECIAL_TOKENS[:8] == ("<pad>", "<s>", "</s>", "<mask>", "<sep>", "<generation>", "<qa>", "<summary>")


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vocabulary_size is 271; .* take 272"):
        train_tokenizer(("text",), 271)
    assert train_tokenizer(("text",), 272).get_vocab_size() == 272


@settings(max_examples=150, deadline=None)
@given(text=TEXT)
def test_any_text_comes_back_unchanged(tokenizer: Tokenizer, text: str) -> None:
    ids = encode(tokenizer, text)
    assert decode(tokenizer, ids) == text
    assert not set(ids) & set(range(len(SPECIAL_TOKENS)))


@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_texts_come_back_unchanged(tokenizer: Tokenizer, text: str) -> None:
    assert decode(tokenizer, encode(tokenizer, text)) == text


@settings(max_examples=100, deadline=None)
@given(text=TEXT)
@example(text="😀 then 光年 and e\u0301")
def test_offsets_count_code_points_and_cover_the_text(tokenizer: Tokenizer, text: str) -> None:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    covered: set[int] = set()
    for index, (begin, end) in zip(encoding.ids, encoding.offsets, strict=True):
        assert 0 <= begin < end <= len(text)
        covered |= set(range(begin, end))
        piece = tokenizer.decode([index], skip_special_tokens=False)
        # A token may hold a part of a character's bytes only; whole ones are exactly what stands there.
        assert "\ufffd" in piece or piece == text[begin:end]
    assert covered == set(range(len(text)))


def test_a_whole_word_behind_emoji_has_its_own_offsets(tokenizer: Tokenizer) -> None:
    text = "😀😀 the river"
    encoding = tokenizer.encode(text, add_special_tokens=False)
    begin = encoding.offsets[encoding.char_to_token(text.index("river"))][0]
    assert text[begin:].strip() == "river"


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_names_of_special_tokens_in_a_text_are_plain_text(tokenizer: Tokenizer, name: str) -> None:
    text = f"say {name} twice: {name}"
    ids = encode(tokenizer, text)
    assert min(ids) >= len(SPECIAL_TOKENS)
    assert decode(tokenizer, ids) == text


def test_special_tokens_leave_no_text(tokenizer: Tokenizer) -> None:
    assert decode(tokenizer, [1, *encode(tokenizer, "mill"), 4, 2, 0]) == "mill"


def test_digits_are_in_groups_of_four_at_most(tokenizer: Tokenizer) -> None:
    pieces = [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str("in 1871 or 123456")]
    assert pieces == ["in", "Ġ1871", "Ġor", "Ġ1234", "56"]


@pytest.mark.parametrize(("text", "place", "number"), [("\ud800", 0, "D800"), ("ab\udfffc", 2, "DFFF")])
def test_a_lone_surrogate_is_refused_with_its_place(tokenizer: Tokenizer, text: str, place: int, number: str) -> None:
    with pytest.raises(ValueError, match=rf"U\+{number} at position {place}"):
        encode(tokenizer, text)
    assert check_text("😀") == "😀"


def test_a_folder_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"{tmp_path} holds no tokenizer\.json.*trident data tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("content", ["", "{}", '{"version": "1.0", "model"', "[1, 2]"])
def test_a_damaged_tokenizer_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json is not a tokenizer"):
        load_tokenizer(tmp_path)


def test_special_tokens_with_other_ids_are_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    changed = (tokenizer_folder / "tokenizer.json").read_text(encoding="utf-8").replace("<summary>", "<resume>")
    (tmp_path / "tokenizer.json").write_text(changed, encoding="utf-8")
    with pytest.raises(ValueError, match=r"<summary> has the id None, expected 7"):
        load_tokenizer(tmp_path)


def test_transformers_loads_the_folder_and_agrees(tokenizer_folder: Path, tokenizer: Tokenizer) -> None:
    from transformers import AutoTokenizer

    auto = AutoTokenizer.from_pretrained(tokenizer_folder)
    assert len(auto) == VOCABULARY_SIZE
    assert (auto.pad_token_id, auto.bos_token_id, auto.eos_token_id, auto.mask_token_id, auto.sep_token_id) == tuple(
        range(5)
    )
    for text in AWKWARD:
        ids = encode(tokenizer, text)
        assert auto(text, add_special_tokens=False)["input_ids"] == ids
        assert auto.decode(ids) == text


def test_a_saved_tokenizer_is_the_same_when_loaded(tmp_path: Path) -> None:
    trained = train_tokenizer(AWKWARD, 400)
    save_tokenizer(trained, tmp_path / "new" / "folder")
    loaded = load_tokenizer(tmp_path / "new" / "folder")
    assert loaded.get_vocab() == trained.get_vocab()
    assert [encode(loaded, text) for text in AWKWARD] == [
        trained.encode(text, add_special_tokens=False).ids for text in AWKWARD
    ]
    assert json.loads((tmp_path / "new/folder/tokenizer_config.json").read_text())["model_max_length"] == 2_048


@given(st.lists(st.text(max_size=30), max_size=20), st.integers(1, 60))
def test_batches_keep_every_text_in_order(texts: list[str], characters: int) -> None:
    made = list(batches(texts, characters))
    assert [text for batch in made for text in batch] == texts
    assert all(sum(map(len, batch)) >= characters for batch in made[:-1])
    assert all(sum(map(len, batch[:-1])) < characters for batch in made)
