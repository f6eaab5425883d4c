"""Every layout computes what a single process does: losses within 1e-5 over 10 steps in fp32, and after resharding."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deploy.bundle.checkpoints import load_checkpoint as load_for_export
from tests.training.parallel.conftest import STEPS, WriteRecipe
from tests.training.parallel.launching import largest_difference, launch, metrics_of
from training.config import load_recipe
from training.train import train

LIMIT = 1e-5
RESUMED_AT = 5


Record = Callable[[str, object], None]


def assert_parity(run: Path, single_run: Path, record: Record) -> None:
    """The same losses; and the same weights, but where a gradient of 0 is rounding noise, which AdamW magnifies."""
    assert len(metrics_of(run)) == STEPS
    difference = largest_difference(run, single_run)
    record("largest_loss_difference", difference)
    assert difference <= LIMIT
    found, expected = (load_file(each / "weights/model.safetensors") for each in (run, single_run))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).norm() / value.norm().clamp(min=1)
        assert error < 1e-3, name


@pytest.mark.parametrize(
    ("parallel", "processes"),
    [
        pytest.param("zero = 1", 2, id="zero1"),
        pytest.param("zero = 2", 2, id="zero2"),
        pytest.param("zero = 3\nwhole_below = 0", 2, id="zero3"),
        pytest.param("tensor = 2", 2, id="tp2"),
        pytest.param("pipeline = 2", 2, id="pp2"),
        pytest.param("data = 2", 2, id="dp2", marks=pytest.mark.slow),
        pytest.param("zero = 3", 2, id="zero3-small-weights-whole", marks=pytest.mark.slow),
        pytest.param("tensor = 4", 4, id="tp4", marks=pytest.mark.slow),
        pytest.param("pipeline = 4", 4, id="pp4", marks=pytest.mark.slow),
        pytest.param("pipeline = 2\ntensor = 2", 4, id="pp2-tp2", marks=pytest.mark.slow),
        pytest.param("pipeline = 2\nzero = 1", 4, id="zero1-pp2", marks=pytest.mark.slow),
        pytest.param("pipeline = 2\nzero = 3\nwhole_below = 0", 4, id="zero3-pp2", marks=pytest.mark.slow),
        pytest.param("tensor = 2\nzero = 2", 4, id="zero2-tp2", marks=pytest.mark.slow),
        pytest.param("tensor = 2\npipeline = 2\nzero = 1", 8, id="zero1-pp2-tp2", marks=pytest.mark.slow),
        pytest.param("pipeline = 4\nzero = 2", 8, id="zero2-pp4", marks=pytest.mark.slow),
        pytest.param("pipeline = 8", 8, id="pp8", marks=pytest.mark.slow),
    ],
)
def test_parity_with_one_process(
    parallel: str, processes: int, write_recipe: WriteRecipe, single_run: Path, record_property: Record
) -> None:
    recipe = write_recipe("run", parallel)
    launch(recipe, processes)
    assert_parity(recipe.with_suffix(""), single_run, record_property)


def test_parity_of_zero3_tensor_and_pipeline_on_eight_processes(
    run_of_eight: Path, single_run: Path, record_property: Record
) -> None:
    assert_parity(run_of_eight, single_run, record_property)


def test_weights_of_eight_processes_are_one_network_for_the_export(run_of_eight: Path) -> None:
    exported = load_for_export(run_of_eight / "weights").state_dict()
    found = load_file(run_of_eight / "weights/model.safetensors")
    assert all(torch.equal(exported[name], value) for name, value in found.items())


@pytest.mark.parametrize(
    ("parallel", "processes", "micro_batches"),
    [
        pytest.param("data = 4\nzero = 2", 4, 1, id="to-dp4"),
        pytest.param("pipeline = 2\ntensor = 2", 4, 2, id="to-pp2-tp2", marks=pytest.mark.slow),
        pytest.param("tensor = 4", 4, 2, id="to-tp4", marks=pytest.mark.slow),
        pytest.param("zero = 3\nwhole_below = 0\npipeline = 2", 4, 2, id="to-zero3-pp2", marks=pytest.mark.slow),
    ],
)
def test_parity_after_resharding_from_eight_processes_to_several(
    parallel: str,
    processes: int,
    micro_batches: int,
    write_recipe: WriteRecipe,
    run_of_eight: Path,
    single_run: Path,
    record_property: Record,
) -> None:
    recipe = write_recipe("run", parallel, micro_batches=micro_batches)
    rewound(run_of_eight, recipe.with_suffix(""))
    launch(recipe, processes)
    assert_parity(recipe.with_suffix(""), single_run, record_property)


def test_parity_after_resharding_from_eight_processes_to_one(
    write_recipe: WriteRecipe, run_of_eight: Path, single_run: Path, record_property: Record
) -> None:
    recipe = write_recipe("run")
    rewound(run_of_eight, recipe.with_suffix(""))
    train(load_recipe(recipe))
    assert_parity(recipe.with_suffix(""), single_run, record_property)


@pytest.mark.slow
def test_parity_after_resharding_from_one_process_to_zero3_and_tensor(
    write_recipe: WriteRecipe, single_run: Path, record_property: Record
) -> None:
    recipe = write_recipe("run", "zero = 3\ntensor = 2\nwhole_below = 0")
    rewound(single_run, recipe.with_suffix(""))
    launch(recipe, 4)
    assert_parity(recipe.with_suffix(""), single_run, record_property)


def rewound(finished: Path, run: Path) -> None:
    """A finished run as it was at its first checkpoint."""
    shutil.copytree(finished, run)
    shutil.rmtree(run / "weights")
    shutil.rmtree(run / f"checkpoints/step-{STEPS:08d}")
    (run / "checkpoints/latest").write_text(f"step-{RESUMED_AT:08d}\n")
