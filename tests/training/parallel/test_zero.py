"""ZeRO by DeepSpeed: what a recipe says in its words, offloading, bf16; and no DeepSpeed where none is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.parallel.conftest import WriteRecipe
from tests.training.parallel.launching import ROOT, largest_difference, launch
from tests.training.parallel.ranks import on_ranks
from training.config import Recipe, load_recipe
from training.engines.engine import Engine
from training.engines.making import make_engine
from training.engines.zero import deepspeed_config
from training.layout import Layout
from training.parallel.mesh import Mesh, make_mesh
from training.train import load_batches

ALONE = """
import sys
from pathlib import Path
from training.config import load_recipe
from training.train import train
train(load_recipe(Path(sys.argv[1])))
print("deepspeed" in sys.modules)
"""
OFFLOADED = "zero = {zero}\nwhole_below = 0\n\n[memory]\noffload_optimizer = true"


def test_a_single_process_imports_no_deepspeed(write_recipe: WriteRecipe) -> None:
    recipe = write_recipe("run", steps=1)
    command = [sys.executable, "-c", ALONE, str(recipe)]
    told = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert told.strip() == "False"


@pytest.mark.parametrize(
    ("zero", "processes"),
    [(1, 1), pytest.param(2, 2, marks=pytest.mark.slow), pytest.param(3, 2, marks=pytest.mark.slow)],
)
def test_parity_of_an_offloaded_optimizer(
    zero: int, processes: int, write_recipe: WriteRecipe, single_run: Path, record_property: object
) -> None:
    recipe = write_recipe("run", OFFLOADED.format(zero=zero))
    launch(recipe, processes)
    difference = largest_difference(recipe.with_suffix(""), single_run)
    record_property("largest_loss_difference", difference)  # type: ignore[operator]
    assert difference <= 1e-5


def test_a_recipe_in_deepspeeds_words(even_recipe: Recipe) -> None:
    even_recipe.parallel.zero, even_recipe.parallel.whole_below = 3, 7
    even_recipe.memory.offload_optimizer = True
    even_recipe.optimizer.clip = 0.5
    found = deepspeed_config(even_recipe, torch.float16)
    assert found["zero_optimization"]["stage"] == 3
    assert found["zero_optimization"]["stage3_param_persistence_threshold"] == 7
    assert found["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert found["gradient_accumulation_steps"] == 2
    assert found["gradient_clipping"] == 0.5
    assert (found["fp16"]["enabled"], found["bf16"]["enabled"]) == (True, False)


@pytest.mark.slow
def test_bf16_is_near_fp32_and_keeps_fp32_weights(write_recipe: WriteRecipe) -> None:
    on_ranks(2, _compare_bf16, write_recipe("run", "zero = 2"))


def _compare_bf16(path: Path) -> None:
    """Three steps of one process of two in bf16, and of a single one in fp32."""
    mesh, recipe = make_mesh(Layout(data=2, zero=2), torch.device("cpu")), load_recipe(path)
    divided, whole = make_engine(recipe, mesh, torch.bfloat16), make_engine(plain(recipe), Mesh(), torch.float32)
    found, expected = losses_of(divided, recipe), losses_of(whole, recipe)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    assert not torch.equal(found, expected)
    for name, state in divided.states():
        assert {entry: value.dtype for entry, value in state.items()} == dict.fromkeys(state, torch.float32), name
        assert set(state) == {"weight", "exp_avg", "exp_avg_sq", "step"}
    assert all(each.dtype == torch.bfloat16 for each in divided.parameters.values())


def plain(recipe: Recipe) -> Recipe:
    """The recipe without ZeRO; the caller's stays."""
    copy = load_recipe(recipe.run.output.with_suffix(".toml"))
    copy.parallel.zero = 0
    return copy


def losses_of(engine: Engine, recipe: Recipe) -> torch.Tensor:
    """Of three steps."""
    found = []
    for batch in load_batches(recipe, engine.mesh, 0):
        found.append(list(engine.total(engine.forward_backward(batch)).values()))
        engine.step(1.0)
        if batch.step == 2:
            break
    return torch.tensor(found)
