"""A recipe that every layout divides evenly, and its run on a single process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.parallel.launching import launch
from tests.training.tiny_corpora import MIXTURE
from training.config import Recipe, load_recipe
from training.data.prepare import prepare
from training.train import train

STEPS = 10
RECIPE = (
    """
[model]
preset = "nano"
overrides = {{ dropout = {dropout} }}

[data]
folder = "{data}"
tokenizer = "{tokenizer}"

[batch]
pretraining_rows = 4
instruction_rows = 4
qa_rows = 4
summary_rows = 4
source_tokens = 64
target_tokens = 16
summary_tokens = 16
micro_batches = {micro_batches}

[long]
every = 4
rows = 4
source_tokens = 96
target_tokens = 16

"""
    + MIXTURE
    + """
[objectives]
task_token_dropout = 0.5
qa_weight = 0.1

[optimizer]
kind = "{optimizer}"

[parallel]
{parallel}

[schedule]
warmup_steps = 4
max_steps = {steps}

[run]
output = "{output}"
device = "{device}"
precision = "fp32"
log_every = 1
checkpoint_every = {checkpoint_every}
"""
)

WriteRecipe = Callable[..., Path]
"""Writes a recipe named by its first argument, [parallel] by its second; other fields by keyword."""


@pytest.fixture(scope="session")
def narrow(corpora: Path, trained_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny corpora in rows of 64 tokens."""
    output = tmp_path_factory.mktemp("narrow") / "data"
    prepare(corpora, output, trained_tokenizer, workers=1, qa_window=64)
    return output


def write(folder: Path, data: Path, tokenizer: Path, name: str, parallel: str = "", **fields: object) -> Path:
    """A recipe whose run goes to `folder / name`."""
    path = folder / f"{name}.toml"
    values = {
        "dropout": 0.0,
        "micro_batches": 2,
        "optimizer": "adamw",
        "steps": STEPS,
        "checkpoint_every": 5,
        "device": "cpu",
        **fields,
    }
    text = RECIPE.format(data=data, tokenizer=tokenizer, output=folder / name, parallel=parallel, **values)
    path.write_text(text)
    return path


@pytest.fixture
def write_recipe(narrow: Path, trained_tokenizer: Path, tmp_path: Path) -> WriteRecipe:
    """Writes recipes into the test's own folder."""
    return lambda name, parallel="", **fields: write(tmp_path, narrow, trained_tokenizer, name, parallel, **fields)


@pytest.fixture
def even_recipe(write_recipe: WriteRecipe) -> Recipe:
    """The recipe as a single process runs it."""
    return load_recipe(write_recipe("even"))


@pytest.fixture(scope="session")
def single_run(narrow: Path, trained_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the recipe on one process."""
    folder = tmp_path_factory.mktemp("single")
    train(load_recipe(write(folder, narrow, trained_tokenizer, "run")))
    return folder / "run"


@pytest.fixture(scope="session")
def run_of_eight(narrow: Path, trained_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the recipe on 2 data × 2 tensor × 2 pipeline processes with ZeRO-3."""
    folder = tmp_path_factory.mktemp("eight")
    parallel = "data = 2\ntensor = 2\npipeline = 2\nzero = 3\nwhole_below = 0"
    launch(write(folder, narrow, trained_tokenizer, "run", parallel), 8)
    return folder / "run"
