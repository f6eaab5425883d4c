"""SIGKILL at any moment: no step that was reported saved is lost, and the end is the undisturbed run's to the bit."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.forks import FINISH_S
from tests.training.parallel.conftest import WriteRecipe
from tests.training.parallel.launching import COMPARED, kill, launch, launch_torchrun, metrics_of, start
from training.claim import claimed
from training.config import load_recipe
from training.train import train

LONG_S = 900
STEPS = 100
ZERO2 = "data = 2\nzero = 2"


def saved_step(run: Path) -> int:
    """The step that the run says it has saved."""
    pointer = run / "checkpoints/latest"
    return int(pointer.read_text().removeprefix("step-")) if pointer.is_file() else 0


def kill_after(recipe: Path, processes: int, step: int, delay_s: float) -> bool:
    """Start, wait for a step to be logged and then for a while, and kill. Returns whether it had not ended before."""
    process = start(recipe, processes)
    run = recipe.with_suffix("")
    deadline_s = time.monotonic() + FINISH_S
    while process.poll() is None and last_step(run) < step:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    try:
        process.wait(timeout=delay_s)
    except subprocess.TimeoutExpired:
        reported = saved_step(run)
        kill(process)
        assert saved_step(run) >= reported
        return True
    assert process.returncode == 0, process.communicate()[0][-4_000:]
    return False


def last_step(run: Path) -> int:
    """The last line of the metrics that is whole."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    whole = [line for line in lines if line.endswith("}")]
    return int(whole[-1].split(":")[1].split(",")[0]) if whole else 0


def assert_same_end(run: Path, undisturbed: Path, steps: int) -> None:
    """Weights to the bit, and the same losses at all steps, each once."""
    found, expected = (load_file(each / "weights/model.safetensors") for each in (run, undisturbed))
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    lines, others = metrics_of(run), metrics_of(undisturbed)
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert [[line[name] for name in COMPARED] for line in lines] == [
        [line[name] for name in COMPARED] for line in others
    ]


def test_two_kills_of_two_processes_lose_no_saved_step(write_recipe: WriteRecipe) -> None:
    fields = {"dropout": 0.1, "steps": 12, "checkpoint_every": 2}
    undisturbed = write_recipe("undisturbed", ZERO2, **fields)
    launch(undisturbed, 2)
    recipe = write_recipe("killed", ZERO2, **fields)
    run = recipe.with_suffix("")
    for step in (3, 7):
        assert kill_after(recipe, 2, step, 0.0 if step == 3 else 0.05)
        assert not (run / "weights").exists()
        assert saved_step(run) >= step - 1
    launch_torchrun(recipe, 2)
    assert_same_end(run, undisturbed.with_suffix(""), 12)


def test_two_runs_do_not_write_into_one_folder(write_recipe: WriteRecipe) -> None:
    """As where a launcher was killed, and what it had started lives on."""
    recipe = load_recipe(write_recipe("run"))
    with (
        claimed(recipe.run.output, "training", "run.output"),
        pytest.raises(ValueError, match=r"another process is training into .*run"),
    ):
        train(recipe)
    assert [each.name for each in recipe.run.output.iterdir()] == ["lock"]


@pytest.mark.slow
@pytest.mark.timeout(3_600)
@pytest.mark.parametrize(("parallel", "processes", "optimizer"), [("", 1, "muon"), (ZERO2, 2, "adamw")])
def test_twenty_random_kills_lose_no_saved_step(
    parallel: str, processes: int, optimizer: str, write_recipe: WriteRecipe, record_property: object
) -> None:
    """The run begins anew from what `latest` names, so a kill may fall into any part of writing a checkpoint."""
    chance = random.Random(20)
    fields = {"dropout": 0.1, "steps": STEPS, "checkpoint_every": 3, "optimizer": optimizer}
    undisturbed = write_recipe("undisturbed", parallel, **fields)
    launch(undisturbed, processes, LONG_S)
    recipe = write_recipe("killed", parallel, **fields)
    run = recipe.with_suffix("")
    at: list[int] = []
    for _ in range(20):
        before, step = saved_step(run), last_step(run) + chance.randrange(1, 4)
        assert kill_after(recipe, processes, step, chance.uniform(0, 0.2)), "it ended too early"
        assert saved_step(run) >= before
        at.append(saved_step(run))
    launch(recipe, processes, LONG_S)
    assert_same_end(run, undisturbed.with_suffix(""), STEPS)
    record_property("saved_steps_at_kills", at)  # type: ignore[operator]
