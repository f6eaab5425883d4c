"""The settings file: defaults, checks, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.data.pipeline.settings import digest_of, load_settings


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "data.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_arguments_go_before_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, '[executor]\nkind = "ray"\nworkers = 7\n[filter]\nlanguages = ["en"]\n')
    settings = load_settings(path, workers=3)
    assert (settings.executor.kind, settings.executor.workers, settings.filter.languages) == ("ray", 3, ["en"])
    assert load_settings(path, executor="local").executor.kind == "local"
    assert load_settings(None).executor.workers == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[filter]\nlanguages = ["en", "fr"]\n', "no quality rules for language 'fr'; known are en, zh"),
        ("[filter]\nbucket = 3\n", "unknown filter.bucket"),
        ("[executor]\nworkers = 0\n", "workers must be at least 1, got 0"),
        ('[executor]\nkind = "spark"\n', "must be one of local, ray, slurm, got 'spark'"),
        ('[executor]\nkind = "slurm"\n', "needs slurm_partition"),
        ("[augment]\nleast_kept = 0.0\n", r"least_kept must be in \(0, 1\]"),
        ("[select]\nfeatures = 10\n", "features must be at least 1024"),
        ("[select\n", "data.toml"),
    ],
)
def test_mistakes_name_the_file_and_the_value(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        load_settings(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no settings file"):
        load_settings(tmp_path / "none.toml")


@pytest.mark.parametrize("models", ['"opus"', '{ forward = "a" }', '{ forward = "a", backward = "b", beams = 2 }'])
def test_a_wrong_pivot_is_named(tmp_path: Path, models: str) -> None:
    settings = load_settings(write(tmp_path, f"[augment.pivots]\nfr = {models}\n"))
    with pytest.raises(ValueError, match=r"fr|backward|beams"):
        _ = settings.augment.routes


def test_the_executor_is_no_part_of_what_a_run_is_known_by() -> None:
    one, two = load_settings(None, workers=1), load_settings(None, workers=2)
    assert digest_of(one.filter, [("a", 1, 2)]) == digest_of(two.filter, [("a", 1, 2)])
    two.filter.hashes = 8
    assert digest_of(one.filter) != digest_of(two.filter)
