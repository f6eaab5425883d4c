"""Checkpoints: damage is found and named, a full disk leaves the last one, and nothing is overwritten."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from model.tokenizer import save_tokenizer, train_tokenizer
from tests.training.parallel.conftest import STEPS, WriteRecipe
from training.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.config import load_recipe
from training.digests import file_digest
from training.engines.engine import Engine
from training.engines.making import make_engine
from training.parallel.checkpoint import Checkpoint
from training.parallel.mesh import Mesh
from training.train import train

SHARD = f"checkpoints/step-{STEPS:08d}/shard-00000.safetensors"


@pytest.fixture
def run(single_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, under the name that the recipe `run` has."""
    return Path(shutil.copytree(single_run, tmp_path / "run"))


@pytest.fixture
def engine(write_recipe: WriteRecipe, run: Path) -> Engine:
    """Of that recipe, fresh."""
    return make_engine(load_recipe(write_recipe("run")), Mesh(), torch.float32)


def contents(run: Path) -> dict[str, bytes]:
    """Every file of a run."""
    return {str(each.relative_to(run)): each.read_bytes() for each in run.rglob("*") if each.is_file()}


def refused(write_recipe: WriteRecipe, run: Path, said: str, **fields: object) -> None:
    """Going on is refused in these words, and leaves every file as it was."""
    before = contents(run)
    with pytest.raises(ValueError, match=said):
        train(load_recipe(write_recipe("run", **fields)))
    assert contents(run) == before


def test_a_shard_with_a_changed_byte_is_named(write_recipe: WriteRecipe, run: Path) -> None:
    with (run / SHARD).open("r+b") as file:
        file.seek(-1_000, 2)
        byte = file.read(1)
        file.seek(-1_000, 2)
        file.write(bytes([byte[0] ^ 1]))
    said = rf"{SHARD} is damaged: its SHA-256 .*; to go on from an older one, write step-00000005 into .*latest"
    refused(write_recipe, run, said)


def test_a_truncated_shard_is_named(write_recipe: WriteRecipe, run: Path) -> None:
    size = (run / SHARD).stat().st_size
    with (run / SHARD).open("r+b") as file:
        file.truncate(size // 2)
    refused(write_recipe, run, rf"{SHARD} has {size // 2} bytes, {size} were written")


def test_a_missing_shard_is_named(write_recipe: WriteRecipe, run: Path) -> None:
    (run / SHARD).unlink()
    refused(write_recipe, run, rf"{SHARD} is missing")


def test_a_damaged_manifest_is_named(write_recipe: WriteRecipe, run: Path) -> None:
    path = (run / SHARD).with_name("manifest.json")
    path.write_text(path.read_text()[:-100])
    refused(write_recipe, run, r"manifest\.json is missing or damaged")


def test_a_pointer_to_nothing_is_named(write_recipe: WriteRecipe, run: Path) -> None:
    (run / "checkpoints/latest").write_text("step-00000099\n")
    refused(write_recipe, run, r"latest names 'step-00000099', which is no checkpoint")


def test_the_older_checkpoint_is_there_to_go_back_to(write_recipe: WriteRecipe, run: Path, single_run: Path) -> None:
    (run / SHARD).unlink()
    (run / "checkpoints/latest").write_text("step-00000005\n")
    assert train(load_recipe(write_recipe("run"))).step == STEPS
    found, expected = (Checkpoint.latest(each) for each in (run, single_run))
    assert found is not None
    assert expected is not None
    assert found.manifest.shards[0].sha256 == expected.manifest.shards[0].sha256


def test_another_optimizers_checkpoint_is_refused(write_recipe: WriteRecipe, run: Path) -> None:
    refused(write_recipe, run, r"optimizer\.kind = 'adamw', the recipe has 'muon'", optimizer="muon")


def test_a_checkpoint_of_another_tokenizer_is_refused(engine: Engine, run: Path, tmp_path: Path) -> None:
    save_tokenizer(train_tokenizer(["of other words altogether"]), tmp_path / "other")
    before = file_digest(engine.recipe.data.tokenizer / "tokenizer.json")
    engine.recipe.data.tokenizer = tmp_path / "other"
    with pytest.raises(ValueError, match=rf"data\.tokenizer = '{before}', the recipe has"):
        load_checkpoint(run, engine)


def test_another_networks_checkpoint_is_refused(write_recipe: WriteRecipe, run: Path) -> None:
    path = write_recipe("run")
    path.write_text(path.read_text().replace('"nano"', '"student"'))
    before = contents(run)
    with pytest.raises(ValueError, match=r"holds a run of .*nano.* the recipe asks for .*student"):
        train(load_recipe(path))
    (run / "recipe.json").unlink()
    path.write_text(path.read_text().replace('"student"', '"nano"').replace("dropout = 0.0", "d_model = 128"))
    with pytest.raises(ValueError, match=r"step-00000010 is a checkpoint with model\.d_model = 64, the recipe has 128"):
        train(load_recipe(path))
    before.pop("recipe.json")
    assert contents(run) == before


def test_a_full_disk_leaves_the_last_checkpoint(engine: Engine, run: Path) -> None:
    before = contents(run)
    with files_of_at_most(1_000_000), pytest.raises(OSError, match=r"step 11 could not be written .*step-00000010"):
        save_checkpoint(run, engine, Progress(step=11))
    assert contents(run) == before
    assert load_checkpoint(run, engine).step == STEPS


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The system refuses to write more into a file, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_is_there_is_not_written_again(engine: Engine, run: Path) -> None:
    before = contents(run)
    save_checkpoint(run, engine, Progress(step=STEPS))
    assert contents(run) == before


def test_two_checkpoints_stay(engine: Engine, run: Path) -> None:
    (run / "checkpoints/step-00000011.unfinished").mkdir()
    (run / "checkpoints/step-00000013").mkdir()  # of a run that went back to an older one
    save_checkpoint(run, engine, Progress(step=12))
    names = sorted(each.name for each in (run / "checkpoints").iterdir())
    assert names == ["latest", "step-00000010", "step-00000012"]
    assert load_checkpoint(run, engine).step == 12


def test_a_kill_between_the_folder_and_the_pointer_loses_nothing(
    engine: Engine, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same step is then written again."""
    progress = Progress(step=11, elapsed_s=1.5, tokens=7)
    with monkeypatch.context() as patch:
        patch.setattr("training.parallel.checkpoint._write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(run, engine, progress)
    assert load_checkpoint(run, engine).step == STEPS
    save_checkpoint(run, engine, progress)
    assert load_checkpoint(run, engine) == progress


def killed(path: Path, text: str) -> None:
    """Write all but the pointer."""
    if "latest" in path.name:
        raise KeyboardInterrupt
    path.write_text(text)


def test_a_restored_engine_goes_on_alike(engine: Engine, run: Path) -> None:
    assert load_checkpoint(run, engine) != Progress()
    checkpoint = Checkpoint.latest(run)
    assert checkpoint is not None
    for name, state in engine.states():
        assert set(state) == {"weight", "exp_avg", "exp_avg_sq", "step"}, name
        for entry, value in state.items():
            assert torch.equal(value, checkpoint.whole(name, entry)), (name, entry)
