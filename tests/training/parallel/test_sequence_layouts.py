"""Sequence parallelism beside the other three dimensions, as a user starts it: the losses of one process.

Slices of the recipe's rows of 64 tokens are whole blocks for two processes and for four; those of its long rows of 96
are padded for four.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.configuration import HybridConfig
from tests.training.parallel.conftest import WriteRecipe
from tests.training.parallel.launching import launch
from tests.training.parallel.sequence_ranks import made_batch
from tests.training.parallel.test_parity import Record, assert_parity
from training.config import Recipe
from training.objectives.micro_batches import slice_of_source
from training.parallel.recipe_layout import lay_out

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
    parallel: str,
    processes: int,
    micro_batches: int,
    write_recipe: WriteRecipe,
    single_run: Path,
    record_property: Record,
) -> None:
    recipe = write_recipe("run", parallel, micro_batches=micro_batches)
    launch(recipe, processes)
    assert_parity(recipe.with_suffix(""), single_run, record_property)


@pytest.mark.slow
def test_sequence_parity_where_layers_are_recomputed(
    write_recipe: WriteRecipe, single_run: Path, record_property: Record
) -> None:
    recipe = write_recipe("run", "sequence = 2\npipeline = 2", micro_batches=2)
    recipe.write_text(recipe.read_text() + "\n[memory]\nactivation_checkpointing = true\n")
    launch(recipe, 4)
    assert_parity(recipe.with_suffix(""), single_run, record_property)


def test_slices_are_equal_whole_blocks_and_together_the_rows() -> None:
    batch = made_batch(100, [100, 3, 70])
    slices = [slice_of_source(batch, rank, 3, block=16) for rank in range(3)]
    assert [each.source_BS.shape for each in slices] == [(3, 48)] * 3
    joined = torch.cat([each.source_BS for each in slices], dim=1)
    assert torch.equal(joined[:, :100], batch.source_BS)
    assert not joined[:, 100:].any(), "what is added is padding"
    assert all(each.lengths_B is batch.lengths_B for each in slices)


@pytest.mark.parametrize(
    ("tensor", "sequence", "message"),
    [
        (1, 3, "parallel.sequence = 3 does not divide the 4 heads .* each of 1 .*: choose one of 1, 2, 4"),
        (2, 4, "parallel.sequence = 4 does not divide the 2 heads .* each of 2 .*: choose one of 1, 2"),
    ],
)
def test_a_sequence_size_that_heads_do_not_divide_by_is_told_what_fits(
    even_recipe: Recipe, tensor: int, sequence: int, message: str
) -> None:
    even_recipe.parallel.tensor, even_recipe.parallel.sequence = tensor, sequence
    with pytest.raises(ValueError, match=message):
        lay_out(even_recipe, HybridConfig.from_preset("nano"), tensor * sequence)


def test_an_exact_recurrence_is_refused_before_anything_starts(even_recipe: Recipe) -> None:
    even_recipe.parallel.sequence = 2
    config = HybridConfig.from_preset("nano", recurrent_block=None)
    with pytest.raises(ValueError, match="needs recurrences in blocks, but recurrent_block is None"):
        lay_out(even_recipe, config, 2)
