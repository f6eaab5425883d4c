"""What tells whether a file is still what it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

from model.tokenizer import TOKENIZER_FILES


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 of the file that a tokenizer's folder loads."""
    return file_digest(folder / TOKENIZER_FILES[0])
