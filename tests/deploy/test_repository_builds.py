"""When a model repository is built, skipped or refused, and what a build leaves that ends midway."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import repository
from deploy.profiles import PROFILES, Backend, Profile, ProfileName
from deploy.replacement import put_in_place
from deploy.repository import STAMP, build_repository
from deploy.triton.manifest import BundleError, load_manifest
from tests.deploy.repository_files import read_config

CPU, GPU = PROFILES[ProfileName.CPU], PROFILES[ProfileName.GPU]
OTHER = Profile(name="other", threads=1)


@pytest.fixture
def bundle(tmp_path: Path, nano_bundle: Path) -> Path:
    """A bundle of a test's own, to be damaged."""
    return shutil.copytree(nano_bundle, tmp_path / "bundle")


def test_an_unchanged_repository_is_left_alone(tmp_path: Path, nano_bundle: Path) -> None:
    def build(**changes):
        arguments = {"backend": Backend.PYTHON, "profile": CPU, **changes}
        return build_repository(nano_bundle, tmp_path / "r", **arguments).rebuilt

    assert build()
    before = (tmp_path / "r").stat().st_ino
    assert not build()
    assert (tmp_path / "r").stat().st_ino == before
    assert build(overwrite=True)
    assert build(backend=Backend.ONNXRUNTIME)
    assert build(backend=Backend.ONNXRUNTIME, profile=GPU)
    assert build()
    assert not build()


@pytest.mark.parametrize("damage", ["remove", "shorten", "add"])
def test_a_repository_that_lost_or_won_a_file_is_built_again(tmp_path: Path, nano_bundle: Path, damage: str) -> None:
    output = tmp_path / "r"
    build_repository(nano_bundle, output, backend=Backend.PYTHON, profile=CPU)
    config = output / "qa" / "config.pbtxt"
    if damage == "remove":
        config.unlink()
    elif damage == "shorten":
        config.write_text("")
    else:
        (output / "qa" / "2").mkdir()
        (output / "qa" / "2" / "model.py").write_text("")
    assert build_repository(nano_bundle, output, backend=Backend.PYTHON, profile=CPU).rebuilt
    assert read_config(output, "qa").name == "qa"
    assert not (output / "qa" / "2").exists()


def test_a_changed_engine_is_copied_again(tmp_path: Path, nano_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build_repository(nano_bundle, tmp_path / "r", backend=Backend.PYTHON, profile=CPU)
    changed = shutil.copytree(repository.ENGINE_SOURCE, tmp_path / "engine")
    (changed / "slots.py").write_text((changed / "slots.py").read_text() + "\n")
    monkeypatch.setattr(repository, "ENGINE_SOURCE", changed)
    assert build_repository(nano_bundle, tmp_path / "r", backend=Backend.PYTHON, profile=CPU).rebuilt


@pytest.mark.parametrize("damage", ["tamper", "truncate", "remove"])
def test_a_damaged_bundle_is_refused_and_the_repository_stays(tmp_path: Path, bundle: Path, damage: str) -> None:
    output = tmp_path / "r"
    build_repository(bundle, output, backend=Backend.PYTHON, profile=CPU)
    stamp = (output / STAMP).read_bytes()
    victim = bundle / "graphs" / "weights-000.bin"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.unlink()
    if damage != "remove":
        victim.write_bytes(content if damage == "tamper" else content[:-1])
    with pytest.raises(BundleError, match=r"weights-000\.bin"):
        build_repository(bundle, output, backend=Backend.PYTHON, profile=CPU)
    assert (output / STAMP).read_bytes() == stamp


@pytest.mark.parametrize("damage", ["tamper", "truncate", "remove"])
def test_a_damaged_repository_asks_to_be_built_again(tmp_path: Path, nano_bundle: Path, damage: str) -> None:
    output = tmp_path / "r"
    build_repository(nano_bundle, output, backend=Backend.PYTHON, profile=CPU)
    victim = output / "qa/1/graphs/qa.onnx"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0xFF
    victim.unlink()
    if damage != "remove":
        victim.write_bytes(content if damage == "tamper" else content[:-1])
    with pytest.raises(BundleError, match=r"qa\.onnx .*: build the model repository again \(trident repository build"):
        load_manifest(victim.parents[1], graphs=["qa"])
    # As the message says: of a changed byte, sizes tell nothing.
    build_repository(nano_bundle, output, backend=Backend.PYTHON, profile=CPU, overwrite=True)
    assert load_manifest(victim.parents[1], graphs=["qa"]).name == "trident-nano"


def test_the_readme_survives_and_other_people_s_files_are_refused(tmp_path: Path, nano_bundle: Path) -> None:
    output = tmp_path / "r"
    output.mkdir()
    (output / "README.md").write_text("about")
    (output / ".gitkeep").touch()
    for backend in Backend:
        build_repository(nano_bundle, output, backend=backend, profile=CPU)
    assert (output / "README.md").read_text() == "about"
    assert (output / ".gitkeep").exists()
    (output / "mine").mkdir()
    with pytest.raises(ValueError, match="did not write \\(mine\\): choose another folder"):
        build_repository(nano_bundle, output, backend=Backend.PYTHON, profile=CPU, overwrite=True)
    assert (output / "mine").is_dir()


@pytest.mark.parametrize("content", ["file", "folder of models"])
def test_what_is_no_generated_repository_is_refused(tmp_path: Path, nano_bundle: Path, content: str) -> None:
    output = tmp_path / "r"
    if content == "file":
        output.write_text("precious")
    else:
        (output / "router").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"choose a(nother)? folder"):
        build_repository(nano_bundle, output, backend=Backend.PYTHON, profile=CPU)
    assert output.exists()


def test_a_failed_build_leaves_what_stood_there(
    tmp_path: Path, nano_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "repositories" / "r"
    build_repository(nano_bundle, output, backend=Backend.PYTHON, profile=CPU)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(OSError, match="No space left"):
        build_repository(nano_bundle, output, backend=Backend.PYTHON, profile=OTHER)
    assert read_config(output, "generator").parameters["threads"].string_value == "0"
    assert [each.name for each in output.parent.iterdir()] == ["r"]


ENDLESS_BUILDS = """
import itertools, sys
from pathlib import Path
from deploy.profiles import Backend, Profile
from deploy.repository import build_repository
for count in itertools.count(1):
    profile = Profile(name="p", slots=count)
    build_repository(Path(sys.argv[1]), Path(sys.argv[2]), backend=Backend.PYTHON, profile=profile)
    print(count, flush=True)
"""


def test_a_killed_build_leaves_a_whole_repository(tmp_path: Path, nano_bundle: Path) -> None:
    output = tmp_path / "repositories" / "r"
    for attempt in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", ENDLESS_BUILDS, str(nano_bundle), str(output)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        # A build takes some 30 ms: the kill falls on another part of it each time.
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.007 * attempt)
        process.send_signal(signal.SIGKILL)
        process.wait()
        stamp = json.loads((output / STAMP).read_text())
        assert stamp["files"] == repository._sizes(output)
        slots = read_config(output, "generator").parameters["slots"].string_value
        assert slots == str(stamp["made_of"]["profile"]["slots"])
    build_repository(nano_bundle, output, backend=Backend.PYTHON, profile=CPU)
    assert [each.name for each in output.parent.iterdir()] == ["r"]


@pytest.mark.parametrize("code", [None, 22, 38])
def test_folders_change_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int | None) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(code, "unsupported")

    if code is not None:
        monkeypatch.setattr("deploy.replacement._exchange", unsupported)
    new, target = tmp_path / "new", tmp_path / "target"
    new.mkdir()
    put_in_place(new, target)
    (target / "first").touch()
    new.mkdir()
    (new / "second").touch()
    put_in_place(new, target)
    assert [each.name for each in target.iterdir()] == ["second"]
    assert [each.name for each in new.iterdir()] == ["first"]


def test_builds_at_once_wait_for_each_other(tmp_path: Path, nano_bundle: Path) -> None:
    output = tmp_path / "repositories" / "r"
    script = ENDLESS_BUILDS.replace("itertools.count(1)", "range(1, 9)")
    processes = [subprocess.Popen([sys.executable, "-c", script, str(nano_bundle), str(output)]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert [each.name for each in output.parent.iterdir()] == ["r"]
    stamp = json.loads((output / STAMP).read_text())
    assert stamp["files"] == repository._sizes(output)
