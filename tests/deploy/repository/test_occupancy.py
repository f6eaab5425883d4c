"""What a running service's Triton reads at its next start is replaced by nobody; real processes hold it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from deploy.repository.build import build_repository
from deploy.repository.occupancy import MARKS, RepositoryInUse, occupants
from deploy.repository.profiles import PROFILES, Backend, ProfileName
from tests.deploy.repository.repository_files import read_config

CPU = PROFILES[ProfileName.CPU]

OCCUPANT = """
import sys
from pathlib import Path
from deploy.repository.build import repository_in_use
from deploy.repository.profiles import PROFILES, Backend, ProfileName
bundle, output = map(Path, sys.argv[1:])
with repository_in_use(bundle, output, backend=Backend.PYTHON, profile=PROFILES[ProfileName.CPU]) as built:
    print(built.bundle_sha256, flush=True)
    sys.stdin.read()
"""

SERVE = """
import sys
from contextlib import ExitStack
from pathlib import Path
from deploy.repository.profiles import Backend, ProfileName
from deploy.server.installation import Installation
from deploy.server.serving import TritonChoice, _repository
installation = Installation(
    binary=Path("none"), origin="none", backend_folders={}, backends=frozenset({Backend.PYTHON})
)
choice = TritonChoice(
    environment=Path("none"), backends=None, backend=None, repository=None, profile=ProfileName.CPU, start_timeout_s=1
)
with ExitStack() as stack:
    print(_repository(Path(sys.argv[1]), installation, choice, stack).path, flush=True)
    sys.stdin.read()
"""


@contextmanager
def process(script: str, *arguments: Path, folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that occupies a repository until its input ends, and the line that it says when it does."""
    root = str(Path(__file__).resolve().parents[3])
    running = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root},
    )
    try:
        assert running.stdout is not None
        yield running, running.stdout.readline().strip()
    finally:
        running.communicate()
    assert running.returncode in (0, -9)


@pytest.fixture
def other_bundle(tmp_path: Path, nano_bundle: Path) -> Path:
    """The same graphs under another name."""
    folder = shutil.copytree(nano_bundle, tmp_path / "other-bundle")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "name": "other"}))
    return folder


def served_name(repository: Path) -> str:
    return read_config(repository, "qa").parameters["bundle"].string_value


def build(bundle: Path, output: Path, **changes) -> bool:
    return build_repository(bundle, output, **{"backend": Backend.PYTHON, "profile": CPU, **changes}).rebuilt


def test_what_a_process_serves_from_is_not_replaced_until_it_ends(
    tmp_path: Path, nano_bundle: Path, other_bundle: Path
) -> None:
    output = tmp_path / "r"
    with process(OCCUPANT, nano_bundle, output, folder=tmp_path) as (running, _):
        for bundle, changes in (
            (other_bundle, {}),
            (nano_bundle, {"backend": Backend.ONNXRUNTIME}),
            (nano_bundle, {"overwrite": True}),
        ):
            with pytest.raises(RepositoryInUse) as refused:
                build(bundle, output, **changes)
            said = str(refused.value)
            assert f"{output} is in use by process {running.pid} (bundle trident-nano, since 20" in said
            assert "stop that process, or choose another folder" in said
            assert "\n" not in said
        assert served_name(output) == "trident-nano"
        assert not build(nano_bundle, output)
    assert build(other_bundle, output)
    assert served_name(output) == "other"


def test_processes_with_one_bundle_share_a_repository(tmp_path: Path, nano_bundle: Path, other_bundle: Path) -> None:
    output = tmp_path / "r"
    with ExitStack() as stack:
        (first, one), (second, two) = (
            stack.enter_context(process(OCCUPANT, nano_bundle, output, folder=tmp_path)) for _ in range(2)
        )
        assert one == two
        assert {each.pid for each in occupants(output)} == {first.pid, second.pid}
        first.communicate()
        with pytest.raises(RepositoryInUse, match=rf"by process {second.pid} "):
            build(other_bundle, output)
    assert not list(output.glob(MARKS))


def test_a_killed_process_keeps_nobody_out(tmp_path: Path, nano_bundle: Path, other_bundle: Path) -> None:
    output = tmp_path / "r"
    with process(OCCUPANT, nano_bundle, output, folder=tmp_path) as (running, _):
        running.kill()
        running.wait()
    assert len(list(output.glob(MARKS))) == 1
    assert build(other_bundle, output)
    assert not list(output.glob(MARKS))


def test_a_launch_with_another_bundle_takes_the_next_folder(
    tmp_path: Path, nano_bundle: Path, other_bundle: Path
) -> None:
    with ExitStack() as stack:
        paths = [
            stack.enter_context(process(SERVE, bundle, folder=tmp_path))[1]
            for bundle in (nano_bundle, other_bundle, nano_bundle, other_bundle)
        ]
        assert paths == ["model_repository", "model_repository-2"] * 2
        assert served_name(tmp_path / "model_repository") == "trident-nano"
        assert served_name(tmp_path / "model_repository-2") == "other"
    with process(SERVE, other_bundle, folder=tmp_path) as (_, path):
        assert path == "model_repository"


def test_launches_at_once_each_get_what_they_asked_for(tmp_path: Path, nano_bundle: Path, other_bundle: Path) -> None:
    """Builds of two bundles for one folder: whoever comes second finds it in use, never replaced under its feet."""
    for _ in range(3):
        with ExitStack() as stack:
            running = [
                subprocess.Popen(
                    [sys.executable, "-c", SERVE, str(bundle)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=tmp_path,
                    env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])},
                )
                for bundle in (nano_bundle, other_bundle)
            ]
            for each in running:
                stack.callback(each.communicate)
            said = []
            for each in running:
                assert each.stdout is not None
                said.append(each.stdout.readline().strip())
            assert sorted(said) == ["model_repository", "model_repository-2"]
            assert [served_name(tmp_path / path) for path in said] == ["trident-nano", "other"]
