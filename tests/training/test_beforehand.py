"""What a run refuses before it takes a step or writes a file."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from training.config import load_recipe
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
