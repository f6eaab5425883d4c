"""Dataclasses from TOML's tables: keys are fields, and a key that no field knows is an error."""

from __future__ import annotations

from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

Section = TypeVar("Section")


def from_table(kind: type[Section], values: dict[str, Any]) -> Section:
    """A dataclass from a table, and those in its fields from tables in that.

    Raises ValueError for unknown, missing or wrong keys, naming them, and what the dataclasses themselves refuse.
    """
    section: Section = _build(kind, values, "")
    return section


def _build(kind: type, values: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    known = {item.name: hints[item.name] for item in fields(kind)}
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"unknown {where or 'section '}{unknown[0]}; known are {', '.join(sorted(known))}")
    for item in fields(kind):
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING:
            raise ValueError(f"{where or 'section '}{item.name} is missing")
    arguments = {}
    for name, value in values.items():
        expected = known[name]
        if is_dataclass(expected):
            if not isinstance(value, dict):
                raise ValueError(f"[{name}] must be a table, got {value!r}")
            arguments[name] = _build(expected, value, f"{name}.")  # type: ignore[arg-type]
        else:
            arguments[name] = _convert(value, expected, f"{where}{name}")
    return kind(**arguments)


def _convert(value: Any, expected: Any, name: str) -> Any:
    """`value` as the field's type; TOML has integers where a float is meant, and no paths."""
    options = getattr(expected, "__args__", (expected,)) if "|" in str(expected) else (expected,)
    for option in options:
        if option is Path and isinstance(value, str):
            return Path(value)
        if option is float and isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        base = getattr(option, "__origin__", option)
        if isinstance(value, base) and not (base is int and isinstance(value, bool)):
            return value
    raise ValueError(f"{name} must be {' or '.join(getattr(o, '__name__', str(o)) for o in options)}, got {value!r}")
