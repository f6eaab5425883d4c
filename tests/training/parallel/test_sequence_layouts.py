"""Sequence parallelism beside the other three dimensions, as a user starts it: the losses of one process.

Slices of the recipe's rows of 64 tokens are whole blocks for two processes and for four; those of its long rows of 96
are padded for four.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.parallel.conftest import WriteRecipe
from tests.training.parallel.launching import launch
from tests.training.parallel.test_parity import assert_parity

ZERO_3 = "zero = 3\nwhole_below = 0\n"


@pytest.mark.parametrize(
    ("parallel", "processes", "micro_batches"),
    [
        pytest.param(ZERO_3 + "sequence = 2", 2, 1, id="zero3-sp2"),
        pytest.param("sequence = 2", 2, 2, id="sp2", marks=pytest.mark.slow),
        pytest.param("sequence = 4", 4, 1, id="sp4", marks=pytest.mark.slow),
        pytest.param(ZERO_3 + "data = 2\nsequence = 2", 4, 1, id="zero3-dp2-sp2", marks=pytest.mark.slow),
        pytest.param("tensor = 2\nsequence = 2", 4, 1, id="tp2-sp2", marks=pytest.mark.slow),
        pytest.param("pipeline = 2\nsequence = 2", 4, 2, id="pp2-sp2", marks=pytest.mark.slow),
        pytest.param(
            ZERO_3 + "data = 2\npipeline = 2\nsequence = 2", 8, 2, id="zero3-dp2-pp2-sp2", marks=pytest.mark.slow
        ),
        pytest.param(
            ZERO_3 + "tensor = 2\npipeline = 2\nsequence = 2", 8, 2, id="zero3-tp2-pp2-sp2", marks=pytest.mark.slow
        ),
    ],
)
def test_sequence_parity_with_one_process(
    parallel: str, processes: int, micro_batches: int, write_recipe: WriteRecipe, single_run: Path
) -> None:
    recipe = write_recipe("run", parallel, micro_batches=micro_batches)
    launch(recipe, processes)
    assert_parity(recipe.with_suffix(""), single_run)


@pytest.mark.slow
def test_sequence_parity_where_layers_are_recomputed(write_recipe: WriteRecipe, single_run: Path) -> None:
    recipe = write_recipe("run", "sequence = 2\npipeline = 2", micro_batches=2)
    recipe.write_text(recipe.read_text() + "\n[memory]\nactivation_checkpointing = true\n")
    launch(recipe, 4)
    assert_parity(recipe.with_suffix(""), single_run)
