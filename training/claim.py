"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def claimed(folder: Path, doing: str, setting: str) -> Iterator[None]:
    """Keep other processes out of a folder. The system lets go of it with the process, however that ends.

    Args:
        folder: made where it is missing.
        doing: what for, "training".
        setting: what names the folder.

    Raises ValueError where another process has it: a launcher that is killed leaves its processes behind.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"another process is {doing} into {folder}: wait for it, end it, or choose another {setting}"
            ) from None
        yield
