"""Which processes serve from a model repository: what their Triton reads at its next start must not be replaced.

    model_repository/
      .in-use-….json      one file a process, with its lock on it

The kernel drops a lock with its process, however that ends, so a file without a lock is what a killed process left.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

MARKS = ".in-use-*.json"


class RepositoryInUse(ValueError):
    """Somebody serves from a repository that would be replaced; the message says who, and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Occupant:
    """A process that serves from a repository."""

    pid: int
    bundle: str
    """The name of what it serves."""

    since: str
    """When it began, UTC."""


@contextmanager
def occupied(folder: Path, bundle: str) -> Iterator[None]:
    """Be an occupant of a repository, which its caller keeps from being replaced until this has begun."""
    if not os.access(folder, os.W_OK):
        # Read-only: who replaces it has rights that this process lacks, and would not be told here.
        yield
        return
    occupants(folder)
    descriptor, name = tempfile.mkstemp(prefix=MARKS.partition("*")[0], suffix=".json", dir=folder)
    mark = Path(name)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        occupant = Occupant(pid=os.getpid(), bundle=bundle, since=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
        mark.write_text(json.dumps(asdict(occupant)), encoding="utf-8")
        yield
    finally:
        mark.unlink(missing_ok=True)
        os.close(descriptor)


def check_unoccupied(folder: Path) -> None:
    """Raises RepositoryInUse where a process serves from a repository."""
    found = occupants(folder)
    if found:
        who = ", ".join(f"process {each.pid} (bundle {each.bundle}, since {each.since})" for each in found)
        raise RepositoryInUse(
            f"{folder} is in use by {who}, whose Triton reads it whenever it starts: stop that process, or choose "
            "another folder (`trident serve --repository`, `trident repository build --output`)"
        )


def occupants(folder: Path) -> list[Occupant]:
    """Who serves from a repository; what killed processes left behind is removed."""
    found = (_occupant(mark) for mark in sorted(folder.glob(MARKS)))
    return [each for each in found if each is not None]


def _occupant(mark: Path) -> Occupant | None:
    # One that ends just now takes its mark away.
    with suppress(FileNotFoundError), mark.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Occupant(**json.load(file))
        mark.unlink()
    return None
