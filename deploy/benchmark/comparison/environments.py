"""A Python environment for each peer that needs more than serving does: `.bench/NAME`, made once.

A peer's own package is pinned in `peers/requirements/NAME.txt`. ONNX Runtime is of the version that Trident itself is
served with, for the same graph is to run as fast behind all of them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from deploy.server.installation import ROOT

FOLDER = ROOT / ".bench"
REQUIREMENTS = Path(__file__).parents[1] / "peers" / "requirements"
COMPLETE = ".complete"

SAME_EVERYWHERE = ("onnxruntime", "tokenizers")
"""Packages that every environment has in the version of this one."""

ASK_VERSIONS = (
    "import sys, json, platform; from importlib.metadata import version; "
    "print(json.dumps({'python': platform.python_version(), **{each: version(each) for each in sys.argv[1:]}}))"
)


class InstallationFailed(ValueError):
    """An environment could not be made; the message says what pip said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """What some peers share."""

    name: str
    extras: str = "serve"
    """Of Trident's own installation."""

    megabytes: int
    """That it takes on disk, about: the larger part is downloaded."""

    @property
    def folder(self) -> Path:
        """Where it stands."""
        return FOLDER / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    @property
    def is_made(self) -> bool:
        """Whether it stands there as it would be made now."""
        stamp = self.folder / COMPLETE
        return stamp.is_file() and stamp.read_text(encoding="utf-8") == self._made_of()

    def make(self) -> None:
        """Make it anew. Raises InstallationFailed."""
        _run([sys.executable, "-m", "venv", "--clear", str(self.folder)])
        pip = [str(self.python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraints:
            constraints.write("\n".join(_pins()))
            constraints.flush()
            itself = f"{ROOT}[{self.extras}]" if self.extras else str(ROOT)
            _run([*pip, "-c", constraints.name, "-e", itself, "-r", str(self._requirements)])
        (self.folder / COMPLETE).write_text(self._made_of(), encoding="utf-8")

    @property
    def _requirements(self) -> Path:
        return REQUIREMENTS / f"{self.name}.txt"

    def _made_of(self) -> str:
        """All that is asked of pip, one package a line."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = [project["optional-dependencies"][extra] for extra in self.extras.split(",") if extra]
        wanted = [*project["dependencies"], *(each for extra in extras for each in extra), *_pins()]
        return "\n".join([*wanted, self._requirements.read_text(encoding="utf-8")])


LITSERVE = Environment(name="litserve", megabytes=350)
BENTOML = Environment(name="bentoml", megabytes=400)
RAY = Environment(name="ray", megabytes=700)
TORCH = Environment(name="torch", extras="serve,export", megabytes=1500)


def make_missing(environments: Sequence[Environment], say: Callable[[str], None]) -> None:
    """Make those that are not there, and say so before. Raises InstallationFailed."""
    missing = [each for each in environments if not each.is_made]
    if not missing:
        return
    total_mb = sum(each.megabytes for each in missing)
    names = ", ".join(each.name for each in missing)
    say(f"Installing {names} into {FOLDER.name}/: about {total_mb} MB, one to three minutes each, once")
    for each in missing:
        say(f"  {each.folder}")
        each.make()


def _pins() -> list[str]:
    return [f"{each}=={version(each)}" for each in SAME_EVERYWHERE]


def versions(python: Path | str, packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages, and of Python, in the environment of an interpreter. Raises InstallationFailed."""
    return json.loads(_run([str(python), "-c", ASK_VERSIONS, *packages]))


def _run(command: Sequence[str]) -> str:
    """What a command printed. Raises InstallationFailed."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InstallationFailed(f"{' '.join(command)} failed:\n{done.stderr.strip()[-2000:]}")
    return done.stdout
