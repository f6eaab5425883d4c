"""Finds a Triton server on this machine: the one inside the pip wheel, or one on PATH.

The wheel nvidia-pytriton holds a whole server with the Python backend only. Its models run in an environment of their
own (`.venv-triton`), because the backend of that version reads empty tensors, without a word, where numpy is 2.x.
"""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy.repository.profiles import Backend

ROOT = Path(__file__).resolve().parents[2]
TRITON_ENV = ROOT / ".venv-triton"
PROBE = Path(__file__).with_name("probe.py")
PROBE_TIMEOUT_S = 60
BINARY = "tritonserver"
STUB = "triton_python_backend_stub"

OLDEST_GLIBC = (2, 35)
"""The wheel is built for manylinux_2_35."""

PYTHONS = ((3, 11), (3, 12))
"""numpy 1.26, which the wheel's server needs, has no wheels for a newer Python."""


class TritonUnavailable(ValueError):
    """No Triton server can run here; the message says why, and the fix where there is one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Installation:
    """A Triton server that can be started."""

    binary: Path
    origin: str
    """Where it was found, for people."""

    backend_folders: Mapping[str, tuple[Path, ...]]
    """Backend name to what its folder must hold; empty where the server's own backend folder is used."""

    backends: frozenset[Backend]
    """Those that can run the stateless models."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to set."""

    path: tuple[Path, ...] = ()
    """Folders that come first on PATH."""

    def arrange_backends(self, folder: Path) -> Path | None:
        """Lay out a backend directory of links in `folder`; None where the server has one of its own."""
        if not self.backend_folders:
            return None
        for name, sources in self.backend_folders.items():
            (folder / name).mkdir(parents=True)
            for source in sources:
                (folder / name / source.name).symlink_to(source)
        return folder


def why_no_wheel(
    *,
    system: str = sys.platform,
    machine: str = platform.machine(),
    python: tuple[int, ...] = sys.version_info[:2],
    libc: tuple[str, str] | None = None,
) -> str | None:
    """Why the wheel's server cannot run on this machine; None where it can."""
    if system != "linux" or machine not in ("x86_64", "AMD64"):
        return f"the embedded Triton runs on x86-64 Linux, and this is {system} on {machine}"
    name, version = libc or platform.libc_ver()
    if name != "glibc" or tuple(map(int, version.split(".")[:2])) < OLDEST_GLIBC:
        oldest = ".".join(map(str, OLDEST_GLIBC))
        return f"the embedded Triton needs glibc {oldest} or newer, and this is {name or 'another libc'} {version}"
    if python not in PYTHONS:
        wanted, found = (".".join(map(str, each)) for each in (PYTHONS[-1], python))
        return f"the embedded Triton runs with Python 3.11 or {wanted}, and this is {found}"
    return None


def find_installation(environment: Path | None = None, extra_backends: Path | None = None) -> Installation:
    """A Triton server.

    Args:
        environment: virtual environment with the wheel, numpy 1.26 and onnxruntime; without it `TRITON_ENV` where that
            exists, else the server on PATH.
        extra_backends: folder of further backends for the wheel's server, one folder each.

    Raises:
        TritonUnavailable: there is none, or it lacks something.
    """
    if environment is not None and not _interpreter(environment).exists():
        raise TritonUnavailable(
            f"{environment} is no Python environment ({_interpreter(environment)} does not exist): run `make serve`, "
            f"which creates {TRITON_ENV.name}, or leave --triton-env out"
        )
    chosen = environment or TRITON_ENV
    if _interpreter(chosen).exists():
        return _find_wheel(chosen, extra_backends)
    binary = shutil.which(BINARY)
    if binary is not None and extra_backends is not None:
        raise TritonUnavailable(f"--triton-backends is for the embedded server, and {binary} has backends of its own")
    if binary is not None:
        return _on_path(Path(binary).resolve())
    raise TritonUnavailable(
        why_no_wheel()
        or f"{chosen} does not exist: run `make serve`, which creates it, or give --triton-env or --triton-url"
    )


def _interpreter(environment: Path) -> Path:
    return environment / "bin" / "python"


def probe(environment: Path) -> dict[str, str | None]:
    """What probe.py finds in an environment. Raises TritonUnavailable where its interpreter does not run."""
    python = _interpreter(environment)
    try:
        answer = subprocess.run(
            [python, "-I", PROBE], capture_output=True, text=True, timeout=PROBE_TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TritonUnavailable(
            f"{python} does not run ({reason}): remove {environment} and run `make serve`"
        ) from None
    return json.loads(answer.stdout)


def _find_wheel(environment: Path, extra_backends: Path | None) -> Installation:
    facts = probe(environment)
    version, numpy = facts["python"], facts["numpy"]
    fix = f"remove {environment} and run `make serve`"
    if facts["pytriton"] is None or facts["onnxruntime"] is None or numpy is None:
        missing = [name for name in ("pytriton", "onnxruntime", "numpy") if facts[name] is None]
        raise TritonUnavailable(f"{environment} lacks {', '.join(missing)}: {fix}")
    if int(numpy.split(".")[0]) >= 2:
        raise TritonUnavailable(f"{environment} has numpy {numpy}, and Triton's tensors need numpy 1.26: {fix}")
    if facts["libpython"] is None:
        raise TritonUnavailable(
            f"Triton needs the shared library libpython{version}.so.1.0: install the package libpython{version} "
            "(Debian, Ubuntu), or use a Python that was built with --enable-shared"
        )
    packages = Path(str(facts["site_packages"]))
    server = packages / "pytriton" / "tritonserver"
    stub = server / "python_backend_stubs" / str(version) / STUB
    if not stub.exists():
        raise TritonUnavailable(f"{stub} does not exist: {fix}")
    folders = {"python": (*(server / "backends" / "python").glob("*triton_python*"), stub)}
    if extra_backends is not None:
        folders |= _extra(extra_backends)
    libraries = [str(packages / "nvidia_pytriton.libs"), *([facts["libpython"]] if facts["libpython"] else [])]
    return Installation(
        binary=server / "bin" / BINARY,
        origin=f"nvidia-pytriton {facts['pytriton']} in {environment}",
        backend_folders=folders,
        backends=frozenset(backend for backend in Backend if backend.value in folders),
        environment={"LD_LIBRARY_PATH": ":".join(libraries), "VIRTUAL_ENV": str(environment)},
        path=(environment / "bin",),
    )


def _extra(folder: Path) -> dict[str, tuple[Path, ...]]:
    found = {each.name: tuple(each.iterdir()) for each in sorted(folder.glob("*")) if each.is_dir()}
    if not found:
        raise TritonUnavailable(f"{folder} holds no backends: give a folder with one folder a backend")
    return found


def _on_path(binary: Path) -> Installation:
    """A server that was installed by others, with a backend folder of its own, as in NVIDIA's images."""
    folder = binary.parents[1] / "backends"
    backends = frozenset(backend for backend in Backend if (folder / backend.value).is_dir())
    if Backend.PYTHON not in backends:
        raise TritonUnavailable(f"{binary} has no Python backend in {folder}, which the generator needs")
    return Installation(binary=binary, origin=str(binary), backend_folders={}, backends=backends)


if __name__ == "__main__":
    sys.exit(why_no_wheel())
