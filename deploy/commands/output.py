"""Results on the terminal, as a table or as JSON, and users' mistakes as one line."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.commands.explanation import MISTAKES, explain

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


OBJECT_WANTED = "name a file that holds one JSON object"


def print_report(report: DataclassInstance, *, as_json: bool) -> None:
    """Print a dataclass: one JSON object, or a line a field."""
    fields = asdict(report)
    if as_json:
        print(json.dumps(fields, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False, box=None)
    for name, value in fields.items():
        table.add_row(name.replace("_", " "), _text(name, value))
    Console(soft_wrap=True).print(table)


def read_object(path: Path | None) -> dict[str, Any]:
    """The JSON object in a file, empty without one. Raises ValueError where the file holds something else."""
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not JSON, it is no UTF-8 text: {OBJECT_WANTED}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): {OBJECT_WANTED}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: {OBJECT_WANTED}")
    return content


@contextmanager
def failing_plainly() -> Iterator[None]:
    """Turn users' mistakes into one line on stderr and exit status 1; for commands that also run as scripts."""
    try:
        yield
    except MISTAKES as error:
        print(f"error: {explain(error, 'export')}", file=sys.stderr)
        raise SystemExit(1) from None


@contextmanager
def usage_errors() -> Iterator[None]:
    """Turn mistakes in what a command was given into one line on stderr and exit status 2."""
    try:
        yield
    except MISTAKES as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        raise SystemExit(2) from None


def _text(name: str, value: Any) -> str:
    if name.startswith("bytes"):
        return f"{value / 1e6:.1f} MB"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{count} × {key}" for key, count in value.items()) or "none"
    return str(value)
