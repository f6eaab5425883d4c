"""What a run refuses before it takes a step or writes a file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from model.tokenizer import save_tokenizer, train_tokenizer
from training.config import load_recipe
from training.data.prepare import prepare, tokenizer_texts
from training.digests import file_digest
from training.train import train


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("target_tokens = 24", "target_tokens = 600", r"batch.target_tokens is 600, above .* = 512: lower it"),
        ("summary_tokens = 24", "summary_tokens = 600", r"batch.summary_tokens is 600, above .* = 512"),
        ("[batch]", "[long]\nevery = 2\ntarget_tokens = 600\n[batch]", r"long.target_tokens is 600, above"),
    ],
)
def test_targets_longer_than_the_position_table(recipe_file: Path, old: str, new: str, said: str) -> None:
    recipe_file.write_text(recipe_file.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=said):
        train(load_recipe(recipe_file))
    assert not (recipe_file.parent / "run").exists()


@pytest.mark.parametrize("lost", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_could_not_be_copied_at_the_end(
    recipe_file: Path, trained_tokenizer: Path, tmp_path: Path, lost: str
) -> None:
    copy = Path(shutil.copytree(trained_tokenizer, tmp_path / "tokenizer"))
    (copy / lost).unlink()
    recipe_file.write_text(recipe_file.read_text().replace(str(trained_tokenizer), str(copy)))
    with pytest.raises(ValueError, match=rf"{copy} holds no {lost}; make one with: trident data tokenizer"):
        train(load_recipe(recipe_file))
    assert not (tmp_path / "run").exists()


def test_an_output_that_is_a_file(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("precious")
    with pytest.raises(ValueError, match=r"run.output: .*run is a file: name a folder"):
        train(load_recipe(recipe_file))
    assert (tmp_path / "run").read_text() == "precious"


def test_a_damaged_note_of_the_recipe(recipe_file: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/recipe.json").write_text("")
    with pytest.raises(ValueError, match=r"recipe.json is damaged .*: delete it, the run writes it again"):
        train(load_recipe(recipe_file))


def test_a_tokenizer_of_another_size_than_the_networks_vocabulary(
    recipe_file: Path, trained_tokenizer: Path, corpora: Path, tmp_path: Path
) -> None:
    small = tmp_path / "small"
    save_tokenizer(train_tokenizer(tokenizer_texts(corpora), 400), small)
    recipe_file.write_text(recipe_file.read_text().replace(str(trained_tokenizer), str(small)))
    said = r"data.tokenizer: .* has 400 tokens, .* vocab_size is 32,000: set model.overrides = { vocab_size = 400 }"
    with pytest.raises(ValueError, match=said):
        train(load_recipe(recipe_file))
    assert not (tmp_path / "run").exists()


def test_data_of_another_tokenizer_of_the_same_size(
    recipe_file: Path, trained_tokenizer: Path, prepared: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    save_tokenizer(train_tokenizer(["of other words altogether"]), other)
    recipe_file.write_text(recipe_file.read_text().replace(str(trained_tokenizer), str(other)))
    made_with, wanted = (file_digest(folder / "tokenizer.json") for folder in (trained_tokenizer, other))
    said = f"{prepared}: shard .* SHA-256 {made_with}, but data.tokenizer {other} has {wanted}: .* prepare again"
    with pytest.raises(ValueError, match=said):
        train(load_recipe(recipe_file))
    assert not (tmp_path / "run").exists()


def test_data_that_do_not_say_which_tokenizer_made_them(
    recipe_file: Path, corpora: Path, trained_tokenizer: Path, prepared: Path, tmp_path: Path
) -> None:
    """As they were prepared before it was written; preparing again makes the shard anew."""
    copy = Path(shutil.copytree(prepared, tmp_path / "data"))
    recipe_file.write_text(recipe_file.read_text().replace(str(prepared), str(copy)))
    note = copy / "train/summary/dialogsum_train/shard.json"
    values = json.loads(note.read_text())
    note.write_text(json.dumps({name: value for name, value in values.items() if name != "tokenizer"}))
    said = f"shard dialogsum_train does not say which tokenizer made it; run trident .* again .*{trained_tokenizer}"
    with pytest.raises(ValueError, match=said):
        train(load_recipe(recipe_file))
    prepare(corpora, copy, trained_tokenizer, workers=1, qa_window=128)
    assert json.loads(note.read_text()) == values


def test_a_small_vocabulary_with_its_own_data_trains(corpora: Path, recipe_file: Path, tmp_path: Path) -> None:
    """Random tokens in place of masked ones are tokens of the vocabulary, whatever its size."""
    small, data = tmp_path / "small", tmp_path / "data"
    save_tokenizer(train_tokenizer(tokenizer_texts(corpora), 400), small)
    prepare(corpora, data, small, workers=1, qa_window=128)
    recipe = load_recipe(recipe_file)
    recipe.data.tokenizer, recipe.data.folder = small, data
    recipe.model.overrides = {"vocab_size": 400}
    recipe.batch.source_tokens, recipe.schedule.max_steps = 256, 8
    assert train(recipe).step == 8
