"""Layouts: what multiplies to the processes and divides the network passes; all else says what would fit."""

from __future__ import annotations

import itertools

import pytest

from model.configuration import HybridConfig
from training.config import Recipe
from training.layout import Layout
from training.parallel.mesh import DIMENSIONS, _ranks_along
from training.parallel.recipe_layout import lay_out, stages_at_most
from training.parallel.stage import units_of

NANO = HybridConfig.from_preset("nano")


def test_what_is_left_of_the_processes_shares_the_data(even_recipe: Recipe) -> None:
    even_recipe.parallel.tensor = 2
    assert lay_out(even_recipe, NANO, 4) == Layout(data=2, tensor=2)
    assert lay_out(even_recipe, NANO, 4).world_size == 4


@pytest.mark.parametrize(
    ("sizes", "processes", "said"),
    [
        ({"data": 2}, 1, "parallel has data = 2, .* but 1 were started; data = 1 fits, or data = 0"),
        ({"tensor": 3}, 8, "tensor × pipeline × sequence must divide 8: 1, 2, 4, 8"),
        ({"data": 4, "pipeline": 2}, 4, "for 8 processes or a multiple, but 4 were started; data = 2 fits"),
        ({"tensor": 8}, 8, "parallel.tensor = 8 does not divide num_heads = 4 .* choose one of 1, 2, 4"),
        ({"pipeline": 16}, 16, "parallel.pipeline = 16 has more stages than .* choose at most"),
        ({}, 4, "batch.pretraining_rows = 4 cannot be divided evenly among 4 .* × 2 micro-batches: choose 8"),
    ],
)
def test_what_does_not_fit_says_what_would(
    even_recipe: Recipe, sizes: dict[str, int], processes: int, said: str
) -> None:
    for name, size in sizes.items():
        setattr(even_recipe.parallel, name, size)
    with pytest.raises(ValueError, match=said):
        lay_out(even_recipe, NANO, processes)


def test_long_rows_are_divided_evenly_too(even_recipe: Recipe) -> None:
    even_recipe.long.rows = 6
    with pytest.raises(ValueError, match=r"long\.rows = 6 cannot be divided evenly .* choose 4 or 8"):
        lay_out(even_recipe, NANO, 2)


def test_there_are_at_most_as_many_stages_as_units() -> None:
    assert stages_at_most(NANO) == len(units_of(NANO)) == 9


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_every_rank_is_once_among_those_that_differ_in_some_dimensions(count: int) -> None:
    layout = Layout(pipeline=2, data=3, sequence=2, tensor=2)
    for dimensions in itertools.combinations(DIMENSIONS, count):
        rings = list(_ranks_along(layout, dimensions))
        assert sorted(itertools.chain(*rings)) == list(range(24))
        size = 1
        for name in dimensions:
            size *= getattr(layout, name)
        assert {len(ring) for ring in rings} == {size}


def test_tensor_parallel_ranks_are_neighbours_and_stages_are_far_apart() -> None:
    layout = Layout(pipeline=2, data=2, tensor=2)
    assert next(_ranks_along(layout, ("tensor",))) == (0, 1)
    assert next(_ranks_along(layout, ("data",))) == (0, 2)
    assert next(_ranks_along(layout, ("pipeline",))) == (0, 4)
