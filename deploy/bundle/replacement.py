"""Put a finished folder or file in another's place, so that whoever looks sees the old one or the new one.

    .NAME.staging     the new one is written here ─┐
    NAME              the old one stands here ◀────┴── exchanged in one step where the system can (Linux)

Where it cannot, the old one is renamed to `.NAME.replaced` first, and back where the second rename fails. A process
that is killed between the two leaves it there: whoever writes next puts it back, and `load_manifest` says where it is.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.triton.manifest import set_aside

AT_FDCWD = -100
RENAME_EXCHANGE = 2
UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP)


@contextmanager
def staging_beside(target: Path) -> Iterator[Path]:
    """An empty folder on the target's filesystem, for one writer at a time.

    What a writer that was killed has left behind is put back or removed first. Raises OSError where the parent cannot
    be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.parent / f".{target.name}.staging"
    with locked(target.parent):
        _clear_interrupted(target, staging)
        with _told_of(target):
            staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def recover(target: Path) -> None:
    """Put back what a killed writer has set aside. Raises OSError where the parent cannot be written."""
    if set_aside(target).exists():
        with locked(target.parent):
            _put_back(target)


def put_in_place(new: Path, target: Path) -> None:
    """Move the folder `new` to `target`; what stood there stands at `new` afterwards.

    Call it inside `staging_beside(target)`. Raises OSError where that fails: the old folder is at `target` then.
    """
    if not target.exists():
        new.rename(target)
        return
    try:
        _exchange(new, target)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _exchange_in_steps(new, target)


def write_text(path: Path, text: str) -> None:
    """Write a file, its folder included. Raises OSError where that fails: the old file is as it was then."""
    if path.exists() and not path.is_file():
        # /dev/null and its like are written to, never replaced.
        path.write_text(text, encoding="utf-8")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.parent / f".{path.name}.unfinished"
    try:
        with _told_of(path):
            unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def _told_of(target: Path) -> Iterator[None]:
    """Errors of what nobody knows by its name, under the name of what it is to become."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from None


def _exchange(first: Path, second: Path) -> None:
    """Exchange two names in one step. Raises OSError, with ENOSYS where the system does not have it."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    names = os.fsencode(first), os.fsencode(second)
    if library.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(second))


def _exchange_in_steps(new: Path, target: Path) -> None:
    aside = set_aside(target)
    target.rename(aside)
    try:
        new.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    aside.rename(new)


def _clear_interrupted(target: Path, staging: Path) -> None:
    _put_back(target)
    if staging.exists():
        shutil.rmtree(staging)


def _put_back(target: Path) -> None:
    aside = set_aside(target)
    if not aside.exists():
        return
    if target.exists():
        # The writer had got as far as the new one: the old one is what is left over.
        shutil.rmtree(aside)
    else:
        aside.rename(target)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks the folder itself: no file stays, and the lock ends with the process, however that ends."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
