"""Tiny corpora, prepared once, and a recipe for a nano network on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from model.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from tests.training.tiny_corpora import MIXTURE, write_corpora
from training.config import Recipe, load_recipe
from training.data.prepare import prepare, tokenizer_texts
from training.train import train

WINDOW = 128
RECIPE = (
    """
[model]
preset = "nano"

[data]
folder = "{data}"
tokenizer = "{tokenizer}"

[batch]
pretraining_rows = 3
instruction_rows = 1
qa_rows = 2
summary_rows = 2
source_tokens = 128
target_tokens = 24
summary_tokens = 24

"""
    + MIXTURE
    + """
[objectives]
task_token_dropout = 0.5

[schedule]
warmup_steps = 4
max_steps = 30

[run]
output = "{output}"
device = "cpu"
precision = "fp32"
log_every = 1
checkpoint_every = 5
"""
)


@pytest.fixture(scope="session")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny corpora."""
    root = tmp_path_factory.mktemp("corpora")
    write_corpora(root)
    return root


@pytest.fixture(scope="session")
def trained_tokenizer(corpora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of those corpora."""
    folder = tmp_path_factory.mktemp("trained") / "tokenizer"
    save_tokenizer(train_tokenizer(tokenizer_texts(corpora)), folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(trained_tokenizer: Path) -> Tokenizer:
    """The same, loaded."""
    return load_tokenizer(trained_tokenizer)


@pytest.fixture(scope="session")
def prepared(corpora: Path, trained_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards and development files of those corpora; tests leave them as they are."""
    output = tmp_path_factory.mktemp("prepared") / "data"
    prepare(corpora, output, trained_tokenizer, workers=1, qa_window=WINDOW)
    return output


@pytest.fixture
def recipe_file(prepared: Path, trained_tokenizer: Path, tmp_path: Path) -> Path:
    """A recipe for a nano run into `tmp_path / "run"`."""
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(data=prepared, tokenizer=trained_tokenizer, output=tmp_path / "run"))
    return path


@pytest.fixture
def recipe(recipe_file: Path) -> Recipe:
    """The same recipe, loaded."""
    return load_recipe(recipe_file)


@pytest.fixture(scope="session")
def finished_run(prepared: Path, trained_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of that recipe, run to its end without a disturbance."""
    folder = tmp_path_factory.mktemp("runs")
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(data=prepared, tokenizer=trained_tokenizer, output=folder / "run"))
    train(load_recipe(path))
    return folder / "run"


@pytest.fixture
def copy_of_run(finished_run: Path, tmp_path: Path) -> Callable[[], Path]:
    """Copies the finished run, for tests that change it."""
    return lambda: Path(shutil.copytree(finished_run, tmp_path / "run"))
