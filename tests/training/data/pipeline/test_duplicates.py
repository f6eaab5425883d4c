"""Duplicates: signatures do not depend on chunks, groups keep their first document."""

from __future__ import annotations

import itertools
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document

from tests.training.data.pipeline.prose import english
from training.data.pipeline import duplicates


def signer(tmp_path: Path) -> duplicates.NearSignatures:
    return duplicates.NearSignatures(str(tmp_path), config=duplicates.minhash(5, 16, 7), language=duplicates.WORDS)


def test_signatures_do_not_depend_on_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = signer(tmp_path)
    shingles = step.get_shingles(english("long", 200))
    whole = step.get_signature(shingles)
    monkeypatch.setattr(duplicates, "SHINGLES_AT_ONCE", 64)
    assert len(shingles) > 640
    assert step.get_signature(shingles) == whole
    assert np.array(whole).shape == (16, 7)


def test_a_text_of_fewer_words_than_a_shingle_has_a_signature(tmp_path: Path) -> None:
    step = signer(tmp_path)
    assert step.get_shingles("two words").shape == (1, 1)
    assert step.get_shingles("").shape == (1, 1)


def test_case_white_space_and_punctuation_do_not_count() -> None:
    texts = ("The river,\n\nthe bridge.", "the RIVER the bridge", "the river; the (bridge)")
    assert len({duplicates.words_as_bytes(Document(text=text, id="0/0")) for text in texts}) == 1


@pytest.mark.parametrize("seed", range(6))
def test_a_group_keeps_its_first_document_in_any_order_of_pairs(tmp_path: Path, seed: int) -> None:
    group = [(0, 4), (0, 9), (1, 0), (2, 3), (2, 7)]
    pairs = [*itertools.combinations(group, 2), ((1, 5), (1, 6))]
    chance = random.Random(seed)
    chance.shuffle(pairs)
    rows = [(*a, *b) if chance.random() < 0.5 else (*b, *a) for a, b in pairs[:7] + [((0, 4), g) for g in group[1:]]]
    rows.append((1, 5, 1, 6))
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs/00000_00.dups").write_bytes(b"".join(struct.pack("<4I", *row) for row in rows))
    duplicates.KeepFirst(tmp_path / "pairs", tmp_path / "near").run()
    removed = {
        (int(path.stem), int(number))
        for path in (tmp_path / "near").glob("*.remove")
        for number in np.fromfile(path, dtype="<u4")
    }
    assert removed == {*group[1:], (1, 6)}
