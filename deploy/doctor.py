"""Looks at everything that `trident serve` needs, and says how to fix what is wrong.

Every check is a function that returns one line; none of them changes anything.
"""

from __future__ import annotations

import platform
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path

from deploy.extras import install_command
from deploy.server.installation import (
    PYTHONS,
    ROOT,
    TRITON_ENV,
    TritonUnavailable,
    find_installation,
    probe,
    why_no_wheel,
)

SERVING_MODULES = (
    "fastapi",
    "grpc",
    "onnxruntime",
    "orjson",
    "psutil",
    "structlog",
    "tokenizers",
    "tritonclient",
    "uvicorn",
)
NEEDED_MEMORY = 1_700_000_000
"""What an idle service may take: the gateway 200 MB, Triton with all models 1.5 GB."""

NEEDED_DISK = 1_000_000_000
"""The two environments and a model repository that cannot be linked."""

NEEDED_SHARED_MEMORY = 256_000_000
"""Tensors travel to Python models through /dev/shm; Docker's 64 MB are too few for a full batch."""

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
SMI_TIMEOUT_S = 20


Bind = Callable[[str, int], socket.socket]
"""How the gateway begins to listen; raises ValueError in words."""


ReadSettings = Callable[[], object]
"""How the gateway reads its settings; raises ValueError in words."""


class Status(StrEnum):
    """How a check went."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    status: Status
    detail: str
    fix: str = ""


def examine(
    *, host: str, port: int, bind: Bind, read_settings: ReadSettings, bundle: Path, triton_env: Path | None
) -> Iterator[Check]:
    """Every check, one after the other; `triton_env` where one was named."""
    yield check_python()
    yield check_packages()
    yield check_settings(read_settings)
    yield check_triton(triton_env)
    yield check_libpython(triton_env or TRITON_ENV)
    yield check_port(host, port, bind)
    yield check_bundle(bundle)
    yield check_memory()
    yield check_shared_memory()
    yield check_gpu()
    yield check_disk(ROOT)


def check_python() -> Check:
    """The interpreter's version, and whether the embedded Triton runs with it."""
    version = platform.python_version()
    if tuple(map(int, version.split(".")[:2])) in PYTHONS:
        return Check(name="python", status=Status.OK, detail=version)
    return Check(
        name="python",
        status=Status.WARN,
        detail=f"{version}: the embedded Triton runs with 3.11 and 3.12",
        fix="remove .venv and run `make serve PYTHON=python3.12`",
    )


def check_packages() -> Check:
    """What the gateway imports."""
    missing = [name for name in SERVING_MODULES if find_spec(name) is None]
    if missing:
        return Check(
            name="packages",
            status=Status.FAIL,
            detail=f"missing: {', '.join(missing)}",
            fix=install_command("serve"),
        )
    return Check(name="packages", status=Status.OK, detail="all that serving needs")


def check_settings(read: ReadSettings) -> Check:
    """Names and values of the environment's settings."""
    try:
        read()
    except ValueError as error:
        fix = "correct or unset it in the environment"
        return Check(name="settings", status=Status.FAIL, detail=str(error), fix=fix)
    return Check(name="settings", status=Status.OK, detail="names and values in the environment are right")


def check_triton(environment: Path | None) -> Check:
    """A server to start; one that was named must do, others are not looked for."""
    try:
        found = find_installation(environment)
    except TritonUnavailable as error:
        if environment is not None:
            return Check(name="triton", status=Status.FAIL, detail=str(error))
        detail = f"{error}; the models run in the gateway's process"
        return Check(name="triton", status=Status.WARN, detail=detail)
    return Check(name="triton", status=Status.OK, detail=found.origin)


def check_libpython(environment: Path) -> Check:
    """The shared library of Python, which Triton's Python backend loads."""
    if why_no_wheel() or not environment.exists():
        return Check(name="libpython", status=Status.OK, detail="not needed without the embedded Triton")
    try:
        facts = probe(environment)
    except TritonUnavailable as error:
        return Check(name="libpython", status=Status.WARN, detail=str(error))
    name = f"libpython{facts['python']}.so.1.0"
    if facts["libpython"] is None:
        fix = f"install the package libpython{facts['python']} (Debian, Ubuntu)"
        return Check(name="libpython", status=Status.WARN, detail=f"{name} is missing", fix=fix)
    return Check(name="libpython", status=Status.OK, detail=f"{name} in {facts['libpython'] or 'the system folders'}")


def check_port(host: str, port: int, bind: Bind) -> Check:
    """Whether the gateway could listen."""
    try:
        bind(host, port).close()
    except ValueError as error:
        return Check(name="port", status=Status.FAIL, detail=str(error))
    return Check(name="port", status=Status.OK, detail=f"{host}:{port} is free")


def check_bundle(bundle: Path) -> Check:
    """All files and their digests."""
    from deploy.triton.manifest import BundleError, load_manifest

    try:
        manifest = load_manifest(bundle)
    except BundleError as error:
        return Check(name="bundle", status=Status.FAIL, detail=str(error))
    size = sum(record.bytes for record in manifest.files.values()) / 1e6
    detail = f"{manifest.name}, {manifest.precision}, {len(manifest.files)} files, {size:.0f} MB, digests match"
    return Check(name="bundle", status=Status.OK, detail=detail)


def check_memory() -> Check:
    """Memory that is free now, within the container's limit."""
    import psutil

    free = psutil.virtual_memory().available
    if CGROUP_LIMIT.is_file() and (limit := CGROUP_LIMIT.read_text(encoding="ascii").strip()).isdigit():
        free = min(free, int(limit))
    return _room("memory", free, NEEDED_MEMORY, "end other programs, or serve with `--runtime local`")


def check_shared_memory() -> Check:
    """Room in /dev/shm."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Check(name="shared memory", status=Status.OK, detail="none, and none needed without Triton")
    return _room("shared memory", shutil.disk_usage(folder).free, NEEDED_SHARED_MEMORY, "docker run --shm-size=1g")


def check_gpu() -> Check:
    """NVIDIA GPUs; none are needed."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return Check(name="gpu", status=Status.OK, detail="none: the models run on the CPU")
    try:
        listed = subprocess.run([command, "-L"], capture_output=True, text=True, timeout=SMI_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        return Check(name="gpu", status=Status.WARN, detail=f"nvidia-smi fails: {error}", fix="check the driver")
    return Check(name="gpu", status=Status.OK, detail="; ".join(listed.stdout.strip().splitlines()))


def check_disk(folder: Path) -> Check:
    """Room for environments and repositories."""
    return _room("disk", shutil.disk_usage(folder).free, NEEDED_DISK, "free some space")


def _room(name: str, free: int, needed: int, fix: str) -> Check:
    detail = f"{free / 1e9:.1f} GB free"
    if free >= needed:
        return Check(name=name, status=Status.OK, detail=detail)
    return Check(name=name, status=Status.WARN, detail=f"{detail}, {needed / 1e9:.1f} GB wanted", fix=fix)
