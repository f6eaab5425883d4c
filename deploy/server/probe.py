"""What an environment holds that Triton's Python backend needs; run by that environment's own interpreter.

Prints one JSON object. Only the standard library is imported, and nothing of Trident: the environment does not have it.
"""

from __future__ import annotations

import ctypes
import json
import sys
import sysconfig
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def libpython_folder(name: str) -> str | None:
    """The folder of the shared library `name`; "" where the loader finds it by itself, None where it is missing."""
    variables = sysconfig.get_config_vars()
    folders = [
        Path(variables.get("LIBDIR") or "/"),
        # A Python that was moved after it was built remembers another folder than the one it lives in.
        Path(sys.base_prefix, "lib"),
        Path("/usr/lib", variables.get("MULTIARCH") or "."),
    ]
    for folder in folders:
        if (folder / name).exists():
            return str(folder)
    try:
        ctypes.CDLL(name)
    except OSError:
        return None
    return ""


def installed(package: str) -> str | None:
    """A package's version."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    facts = {
        "python": python,
        "site_packages": sysconfig.get_paths()["purelib"],
        "libpython": libpython_folder(f"libpython{python}.so.1.0"),
        "numpy": installed("numpy"),
        "onnxruntime": installed("onnxruntime") or installed("onnxruntime-gpu"),
        "pytriton": installed("nvidia-pytriton"),
    }
    print(json.dumps(facts))
