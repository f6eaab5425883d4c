"""A run: it learns, tells what it does, survives a kill to the bit, and says what its weights come from."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from deploy.bundle.checkpoints import load_checkpoint as load_for_export
from model.configuration import HybridConfig
from model.network import HybridModel
from tests.forks import Forks
from tests.training.conftest import RECIPE
from tests.training.parallel.launching import launch_torchrun, metrics_of, start
from training.config import Recipe, load_recipe
from training.data.batches import Batches
from training.data.catalogue import weights_licence
from training.objectives.losses import NAMES, Losses, compute_losses
from training.parallel.checkpoint import Checkpoint
from training.train import pick_device, train

STEPS = 30
DEADLINE_S = 120


@torch.no_grad()
def mean_losses(model: HybridModel, recipe: Recipe) -> Losses:
    """Without dropout, over steps whose batches cover early and late weights."""
    batches = Batches(recipe)
    found = [compute_losses(model.eval(), batches[step]) for step in range(0, STEPS, 3)]
    return Losses({name: torch.stack([losses[name] for losses in found]).mean() for name in NAMES})


def wait_for_step(process: Forks, run: Path, step: int) -> None:
    """Until the run has logged a step."""
    deadline_s = time.monotonic() + DEADLINE_S
    path = run / "metrics.jsonl"
    while not path.is_file() or f'"step": {step},' not in path.read_text():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


def test_a_run_lowers_every_loss(finished_run: Path, recipe: Recipe) -> None:
    torch.manual_seed(recipe.run.seed)
    before = mean_losses(HybridModel(HybridConfig.from_preset("nano")), recipe)
    after = mean_losses(HybridModel.from_pretrained(finished_run / "weights"), recipe)
    for name in NAMES:
        assert after[name] < before[name], name
    assert after["masked"] < 8
    assert after["continuation"] < 8


def test_a_killed_run_goes_on_and_ends_with_the_same_weights_to_the_bit(
    finished_run: Path, recipe_file: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    with start(recipe_file, 1) as process:
        wait_for_step(process, run, 8)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not (run / "weights").exists()
    saved = Checkpoint.latest(run)
    assert saved is not None
    at_kill = saved.manifest.step
    assert 5 <= at_kill < STEPS

    told = launch_torchrun(recipe_file, 1)
    assert f"{run / 'weights'}: {STEPS} steps" in told

    expected = load_file(finished_run / "weights/model.safetensors")
    found = load_file(run / "weights/model.safetensors")
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    lines, undisturbed = metrics_of(run), metrics_of(finished_run)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert [line["loss"] for line in lines] == [line["loss"] for line in undisturbed]
    assert [line["tokens"] for line in lines] == [line["tokens"] for line in undisturbed]


def test_every_line_of_the_metrics_tells_losses_rate_and_speed(finished_run: Path, recipe: Recipe) -> None:
    lines = metrics_of(finished_run)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    expected = {"step", "loss", *NAMES, "gradient_norm", "rate_factor", "tokens", "elapsed_s"}
    speed = {"step_s", "tokens_per_s", "mfu", "peak_memory_bytes"}
    assert all(set(line) == expected | speed for line in lines)
    weights = [1.0, 1.0, 1.0, 1.0, 0.1]
    for line in lines:
        parts = sum(weight * line[name] for weight, name in zip(weights, NAMES, strict=True))
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
        assert line["tokens_per_s"] > 0
    batches = Batches(recipe)
    assert [line["tokens"] for line in lines[:3]] == [sum(batches[s].tokens for s in range(n)) for n in (1, 2, 3)]
    assert lines[0]["rate_factor"] == pytest.approx(0.25)
    assert lines[-1]["rate_factor"] == pytest.approx((1 / STEPS) / 0.3)


def test_the_weights_load_in_transformers_and_in_the_export(finished_run: Path) -> None:
    trained = HybridModel.from_pretrained(finished_run / "weights")
    exported = load_for_export(finished_run / "weights")
    checkpoint = Checkpoint.latest(finished_run)
    assert checkpoint is not None
    assert checkpoint.manifest.step == STEPS
    for name, value in trained.state_dict().items():
        assert torch.equal(value, checkpoint.whole(name, "weight")), name
        assert torch.equal(value, exported.state_dict()[name]), name


def test_the_weights_stand_beside_their_tokenizer(finished_run: Path, trained_tokenizer: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (finished_run / "weights" / name).read_bytes() == (trained_tokenizer / name).read_bytes()


def test_provenance_lists_the_sources_and_the_strictest_licence(finished_run: Path) -> None:
    told = json.loads((finished_run / "weights/provenance.json").read_text(encoding="utf-8"))
    licences = {source["name"]: source["licence"] for source in told["sources"]}
    assert set(licences) == {
        "wikipedia_en",
        "wikipedia_zh",
        "books_en",
        "squad",
        "squad_subset",
        "xquad_zh",
        "dialogsum",
        "alpaca",
    }
    assert licences["dialogsum"] == "CC BY-NC-SA 4.0"
    assert told["license"] == "CC-BY-NC-SA-4.0"
    assert told["training"]["steps"] == STEPS
    assert told["training"]["tokens"] == metrics_of(finished_run)[-1]["tokens"]


@pytest.mark.parametrize(
    ("licences", "expected"),
    [
        (["MIT", "CC BY-NC 4.0", "CC BY-SA 3.0"], "CC-BY-NC-SA-4.0"),
        (["MIT", "CC BY-SA 3.0"], "CC-BY-SA-4.0"),
        (["MIT", "public domain"], "Apache-2.0"),
    ],
)
def test_weights_carry_the_strictest_licence_of_their_data(licences: list[str], expected: str) -> None:
    assert weights_licence({"licence": licence} for licence in licences) == expected


def test_a_finished_run_started_again_changes_nothing(
    copy_of_run: Callable[[], Path], recipe: Recipe, finished_run: Path
) -> None:
    run = copy_of_run()
    assert train(recipe).step == STEPS
    before, after = (load_file(folder / "weights/model.safetensors") for folder in (finished_run, run))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert metrics_of(run) == metrics_of(finished_run)


def test_the_output_of_another_network_is_refused(copy_of_run: Callable[[], Path], recipe: Recipe) -> None:
    run = copy_of_run()
    recipe.model.preset = "student"
    with pytest.raises(ValueError, match=rf"{run} holds a run of .*nano.* the recipe asks for .*student"):
        train(recipe)
    assert json.loads((run / "recipe.json").read_text())["model"]["preset"] == "nano"


def test_a_line_that_a_kill_cut_short_is_dropped(copy_of_run: Callable[[], Path], recipe: Recipe) -> None:
    run = copy_of_run()
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole + '{"step": 31, "lo')
    train(recipe)
    assert (run / "metrics.jsonl").read_text() == whole


def test_a_run_ends_at_its_minutes(prepared: Path, trained_tokenizer: Path, tmp_path: Path) -> None:
    text = RECIPE.format(data=prepared, tokenizer=trained_tokenizer, output=tmp_path / "run")
    (tmp_path / "recipe.toml").write_text(text.replace("max_steps = 30", "max_minutes = 0.01"))
    progress = train(load_recipe(tmp_path / "recipe.toml"))
    assert progress.step >= 1
    assert progress.elapsed_s >= 0.6
    assert (tmp_path / "run/weights/model.safetensors").is_file()


def test_a_run_that_diverges_keeps_its_last_whole_checkpoint(
    copy_of_run: Callable[[], Path], recipe_file: Path
) -> None:
    run = copy_of_run()
    shutil.rmtree(run / "weights")
    rates = "[optimizer]\nlearning_rate = 1e12\nmatrix_learning_rate = 1e12\n\n[schedule]"
    recipe_file.write_text(recipe_file.read_text().replace("[schedule]", rates).replace("= 30", "= 60"))
    said = r"not finite: lower the recipe's learning rates\); the last whole one: step-00000030"
    with pytest.raises(OSError, match=said):
        train(load_recipe(recipe_file))
    saved = Checkpoint.latest(run)
    assert saved is not None
    assert saved.manifest.step == STEPS
    assert not (run / "weights").exists()


def test_a_run_by_the_clock_says_where_its_mixture_will_not_get(
    prepared: Path,
    trained_tokenizer: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: 0.1 * next(ticks))  # else a busy machine has too few steps
    text = RECIPE.format(data=prepared, tokenizer=trained_tokenizer, output=tmp_path / "run")
    text = text.replace("max_steps = 30", "max_minutes = 0.1").replace("end = 15", "end = 1_000_000")
    (tmp_path / "recipe.toml").write_text(text)
    train(load_recipe(tmp_path / "recipe.toml"))
    told = [line for line in capsys.readouterr().err.splitlines() if "s a step this run will have about" in line]
    assert len(told) == 1
    assert "but mixture.end = 1,000,000: the late weights will not be reached" in told[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_said() -> None:
    with pytest.raises(ValueError, match=r'run\.device is "cuda", and PyTorch finds no GPU'):
        pick_device("cuda")
    assert pick_device("auto") == torch.device("cpu")
