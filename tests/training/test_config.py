"""Recipes: every mistake is a ValueError that names the file and the key; the shipped ones load."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.configuration import HybridConfig
from training.config import load_recipe

SHIPPED = sorted((Path(__file__).parents[2] / "training" / "recipes").glob("*.toml"))


def mistake(path: Path, old: str, new: str) -> str:
    """What loading says after `old` became `new` in the recipe."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=r".") as caught:
        load_recipe(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_load_and_fit_their_network(path: Path) -> None:
    recipe = load_recipe(path)
    config = HybridConfig.from_preset(recipe.model.preset, **recipe.model.overrides)
    sizes = (recipe.batch, recipe.long)
    assert all(size.source_tokens <= config.max_positions for size in sizes)
    assert all(size.target_tokens <= config.max_target_positions for size in sizes)
    assert recipe.batch.summary_tokens <= config.max_target_positions


def test_there_is_a_shipped_recipe() -> None:
    assert "student" in [path.stem for path in SHIPPED]


def test_values_have_their_fields_types(recipe_file: Path) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("max_steps = 30", "max_steps = 30\nmax_minutes = 2"))
    recipe = load_recipe(recipe_file)
    assert recipe.run.output == recipe_file.parent / "run"
    assert isinstance(recipe.schedule.max_minutes, float)
    assert recipe.batch.rows == 8
    assert recipe.batch.tokens == 8 * 128 + 4 * 24 + 2 * 24
    assert recipe.as_dict()["data"]["tokenizer"] == str(recipe.data.tokenizer)


def test_sections_left_out_have_their_defaults(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.long.every == 0
    assert recipe.optimizer.clip == 1.0


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[objectives]", "[objective]", "objective"),
        ("warmup_steps", "warm_up_steps", "schedule.warm_up_steps"),
        ("log_every", "seeds = 1\nlog_every", "run.seeds"),
        ('preset = "nano"', "", "model.preset is missing"),
        ("warmup_steps = 4", "", "schedule.warmup_steps is missing"),
        ('[model]\npreset = "nano"\n', "", "section model is missing"),
        ('preset = "nano"', "preset = 3", "model.preset must be str, got 3"),
        ("qa_rows = 2", "qa_rows = 2.5", "batch.qa_rows must be int, got 2.5"),
        ("qa_rows = 2", "qa_rows = true", "batch.qa_rows must be int, got True"),
        ("qa_rows = 2", "qa_rows = 0", "batch.qa_rows must be at least 1, got 0"),
        ("source_tokens = 128", "source_tokens = 8", "batch.source_tokens must be at least 16, got 8"),
        ("task_token_dropout = 0.5", "task_token_dropout = true", "objectives.task_token_dropout must be float"),
        ("task_token_dropout = 0.5", "task_token_dropout = 1.0", "objectives.task_token_dropout must be in [0, 1)"),
        ("end = 15", "end = 5", "mixture.end must be at least 6, got 5"),
        ("alpaca = 1.0", 'alpaca = "much"', "mixture.instruction must hold numbers"),
        ("alpaca = 1.0", "alpaca = -1.0", "mixture.instruction must hold weights that are not negative"),
        ("qa_early = { cloze = 1.0 }", "qa_early = {}", "mixture.qa_early"),
        ("qa_early = { cloze = 1.0 }", "qa_early = 1", "mixture.qa_early must be dict"),
        ("max_steps = 30", "", "schedule needs max_steps, max_minutes or both"),
        ("max_steps = 30", "max_steps = 0", "schedule.max_steps must be positive, got 0"),
        ("max_steps = 30", "max_minutes = 0", "schedule.max_minutes must be positive, got 0"),
        ("max_steps = 30", "max_steps = 30\ndecay_fraction = 2", "schedule.decay_fraction must be in [0, 1], got 2"),
        ('precision = "fp32"', 'precision = "fp8"', "run.precision must be one of bf16, fp16, fp32, got 'fp8'"),
        ('device = "cpu"', 'device = "tpu"', "run.device must be one of auto, cpu, cuda, got 'tpu'"),
        ("[schedule]", "[optimizer]\nkind = 'sgd'\n[schedule]", "optimizer.kind must be one of muon, adamw, got 'sgd'"),
        ("[batch]", "workers = -1\n[batch]", "data.workers must be at least 0, got -1"),
        ("[schedule]", "[optimizer]\nlearning_rate = -1.0\n[schedule]", "optimizer.learning_rate must be positive"),
        ("[schedule]", "[optimizer]\nmatrix_learning_rate = nan\n[schedule]", "optimizer.matrix_learning_rate must be"),
        ("[schedule]", "[optimizer]\nclip = 0.0\n[schedule]", "optimizer.clip must be positive, got 0.0"),
        ("[schedule]", "[parallel]\nzero = 4\n[schedule]", "parallel.zero must be 0, 1, 2 or 3, got 4"),
        ("[schedule]", "[parallel]\ntensor = 0\n[schedule]", "tensor must be at least 1, got 0"),
        ("[schedule]", "[parallel]\ndepth = 2\n[schedule]", "unknown parallel.depth; known are data, pipeline"),
        ("[schedule]", "[parallel]\nzero = 1\n[schedule]", 'optimizer.kind = "muon" needs whole matrices'),
        ("[schedule]", "[memory]\noffload_optimizer = true\n[schedule]", "memory.offload_optimizer is ZeRO's"),
        ("summary_tokens = 24", "summary_tokens = 24\nmicro_batches = 0", "micro_batches must be at least 1, got 0"),
        ("[run]", "[run", "at line"),
    ],
)
def test_a_mistake_names_the_file_and_the_key(recipe_file: Path, old: str, new: str, said: str) -> None:
    assert said in mistake(recipe_file, old, new)


def test_a_value_in_a_sections_place_is_refused(recipe_file: Path) -> None:
    recipe_file.write_text("long = 3\n" + recipe_file.read_text())
    with pytest.raises(ValueError, match=r"\[long\] must be a table, got 3"):
        load_recipe(recipe_file)


def test_a_recipe_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"there is no recipe {tmp_path / 'none.toml'}"):
        load_recipe(tmp_path / "none.toml")
