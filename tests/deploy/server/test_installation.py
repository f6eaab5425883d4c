"""Which Triton is found on a machine, and what is said where there is none that runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy.repository.profiles import Backend
from deploy.server import installation as server
from deploy.server.installation import PROBE, Installation, TritonUnavailable, find_installation, why_no_wheel

LINUX = {"system": "linux", "machine": "x86_64", "python": (3, 12), "libc": ("glibc", "2.36")}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"python": (3, 11), "libc": ("glibc", "2.35")}, None),
        ({"system": "darwin", "machine": "arm64"}, "runs on x86-64 Linux, and this is darwin on arm64"),
        ({"machine": "aarch64"}, "runs on x86-64 Linux, and this is linux on aarch64"),
        ({"python": (3, 13)}, "runs with Python 3.11 or 3.12, and this is 3.13"),
        ({"libc": ("glibc", "2.31")}, "needs glibc 2.35 or newer, and this is glibc 2.31"),
        ({"libc": ("", "")}, "needs glibc 2.35 or newer, and this is another libc"),
    ],
)
def test_machines_that_the_wheel_does_not_run_on_are_told_why(change: dict, reason: str | None) -> None:
    found = why_no_wheel(**LINUX | change)
    assert found is None if reason is None else reason in str(found)


def make_environment(folder: Path, **facts: str | None) -> Path:
    """An environment whose interpreter answers the probe with these facts."""
    packages = folder / "site-packages"
    server = packages / "pytriton" / "tritonserver"
    for file in ("bin/tritonserver", "backends/python/libtriton_python.so",
                 "backends/python/triton_python_backend_utils.py",
                 "python_backend_stubs/3.11/triton_python_backend_stub"):  # fmt: skip
        (server / file).parent.mkdir(parents=True, exist_ok=True)
        (server / file).touch()
    answer = {
        "python": "3.11",
        "site_packages": str(packages),
        "libpython": "/lib/here",
        "numpy": "1.26.4",
        "onnxruntime": "1.32.0",
        "pytriton": "0.7.0",
        **facts,
    }
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    python.chmod(0o755)
    return folder


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"libpython": None}, "install the package libpython3.11"),
        ({"numpy": "2.4.6"}, "has numpy 2.4.6, and Triton's tensors need numpy 1.26"),
        ({"pytriton": None, "onnxruntime": None}, "lacks pytriton, onnxruntime: remove"),
        ({"python": "3.7"}, "3.7/triton_python_backend_stub does not exist"),
    ],
)
def test_an_environment_that_lacks_something_says_what_and_how_to_mend_it(
    tmp_path: Path, facts: dict[str, str | None], reason: str
) -> None:
    with pytest.raises(TritonUnavailable) as caught:
        find_installation(make_environment(tmp_path / "env", **facts))
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_interpreter_that_does_not_run_is_named(tmp_path: Path) -> None:
    environment = make_environment(tmp_path / "env")
    (environment / "bin" / "python").write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(TritonUnavailable, match=r"bin/python does not run .*: remove .*env and run `make serve`"):
        find_installation(environment)


def test_backends_are_laid_out_with_the_stub_of_the_environment_s_python(tmp_path: Path) -> None:
    found = find_installation(make_environment(tmp_path / "env"))
    assert found.backends == {Backend.PYTHON}
    assert found.environment["LD_LIBRARY_PATH"].split(":") == [
        str(tmp_path / "env" / "site-packages" / "nvidia_pytriton.libs"),
        "/lib/here",
    ]
    folder = found.arrange_backends(tmp_path / "backends")
    assert folder is not None
    assert {each.name for each in (folder / "python").iterdir() if each.exists()} == {
        "libtriton_python.so",
        "triton_python_backend_utils.py",
        "triton_python_backend_stub",
    }


def test_further_backends_stand_beside_the_wheel_s_own(tmp_path: Path) -> None:
    library = tmp_path / "more" / "onnxruntime" / "libtriton_onnxruntime.so"
    library.parent.mkdir(parents=True)
    library.touch()
    found = find_installation(make_environment(tmp_path / "env"), tmp_path / "more")
    assert found.backends == set(Backend)
    folder = found.arrange_backends(tmp_path / "backends")
    assert folder is not None
    assert (folder / "onnxruntime" / library.name).samefile(library)
    with pytest.raises(TritonUnavailable, match="holds no backends"):
        find_installation(tmp_path / "env", tmp_path / "nothing")


@pytest.mark.parametrize("native", [True, False])
def test_a_server_on_path_is_taken_where_there_is_no_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: bool
) -> None:
    binary = tmp_path / "triton" / "bin" / "tritonserver"
    binary.parent.mkdir(parents=True)
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    monkeypatch.setenv("PATH", str(binary.parent))
    monkeypatch.setattr(server, "TRITON_ENV", tmp_path / "missing")
    with pytest.raises(TritonUnavailable, match="has no Python backend"):
        find_installation()
    for name in ["python", *(["onnxruntime"] if native else [])]:
        (tmp_path / "triton" / "backends" / name).mkdir(parents=True)
    found = find_installation()
    assert found.binary == binary
    assert (Backend.ONNXRUNTIME in found.backends) == native
    assert found.arrange_backends(tmp_path / "backends") is None
    # What was asked for by name is not replaced by what happens to be there.
    with pytest.raises(TritonUnavailable, match=r"missing is no Python environment .*bin/python does not exist"):
        find_installation(tmp_path / "missing")
    with pytest.raises(TritonUnavailable, match="--triton-backends is for the embedded server"):
        find_installation(extra_backends=tmp_path)


def test_a_machine_without_any_server_is_told_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(server, "TRITON_ENV", tmp_path / "missing")
    with pytest.raises(TritonUnavailable) as caught:
        find_installation()
    assert "run `make serve`" in str(caught.value) or why_no_wheel() == str(caught.value)


def test_the_real_environment_has_everything(installation: Installation) -> None:
    assert installation.binary.is_file()
    assert all(source.exists() for sources in installation.backend_folders.values() for source in sources)


def test_the_probe_runs_with_the_standard_library_alone() -> None:
    answer = subprocess.run([sys.executable, "-I", "-S", PROBE], capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
