"""Users' mistakes in one line: what is wrong, with which file, and what to do about it."""

from __future__ import annotations

import errno

from deploy.extras import missing_module

CAUSES = {
    errno.ENOENT: "does not exist: look at its spelling, or name another",
    errno.EISDIR: "is a folder: name a file",
    errno.ENOTDIR: "cannot be, because a part of that path is a file and not a folder: choose another path",
    errno.EACCES: "may not be read or written by this user: change its rights, or choose another path",
    errno.EPERM: "may not be changed by this user: choose another path",
    errno.EROFS: "is on a file system that cannot be written: choose another path",
    errno.ENOSPC: "finds no space left on its disk: free some, or choose another path",
    errno.EEXIST: "exists already, and not as the folder that is wanted: choose another path",
    errno.ENAMETOOLONG: "is too long a name: choose another path",
}
MISTAKES = (ValueError, OSError, ModuleNotFoundError)
"""What users' mistakes raise; anything else is a mistake of ours, and shows where."""


def explain(error: Exception, command: str | None = None) -> str:
    """One line for an exception of a command."""
    if isinstance(error, ModuleNotFoundError):
        return missing_module(error.name or "", command) or str(error)
    if isinstance(error, UnicodeDecodeError):
        return f"what is to be read is not UTF-8 text: {error.reason} (byte {error.object[error.start]:#04x})"
    if isinstance(error, OSError) and error.strerror:
        cause = CAUSES.get(error.errno or 0, f"cannot be used: {error.strerror.lower()}")
        return f"{error.filename2 or error.filename} {cause}" if error.filename else error.strerror
    return str(error)
