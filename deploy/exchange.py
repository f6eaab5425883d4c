"""Put a finished folder in another's place, so that whoever looks sees the old one or the new one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

AT_FDCWD = -100
RENAME_EXCHANGE = 2
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def workshop_beside(target: Path) -> Iterator[Path]:
    """A temporary folder on the target's filesystem, for one writer at a time.

    What a writer that was killed has left behind is removed first. Raises OSError where the parent cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{target.name}-"
    parent = os.open(target.parent, os.O_RDONLY)
    try:
        # Locks the folder itself: no file stays, and the lock ends with the process, however that ends.
        fcntl.flock(parent, fcntl.LOCK_EX)
        for leftover in target.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=target.parent) as workshop:
            yield Path(workshop)
    finally:
        os.close(parent)


def put_in_place(new: Path, target: Path) -> None:
    """Move the folder `new` to `target`; what stood there stands at `new` afterwards.

    One step where the system can exchange two names (Linux), else two, between which the target is missing.
    """
    if not target.exists():
        new.rename(target)
        return
    try:
        _exchange(new, target)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        aside = new.with_name(f"{new.name}-aside")
        target.rename(aside)
        new.rename(target)
        aside.rename(new)


def _exchange(first: Path, second: Path) -> None:
    """Exchange two names in one step. Raises OSError, with ENOSYS where the system does not have it."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    names = os.fsencode(first), os.fsencode(second)
    if library.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(second))
