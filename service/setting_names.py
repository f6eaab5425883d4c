"""Names in the environment that look like settings and are none: a misspelt one must not pass in silence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping

from pydantic import BaseModel
from pydantic_settings import BaseSettings

OF_THE_COMMAND_LINE = ("TRIDENT_TRITON_ENV", "TRIDENT_TRITON_BACKENDS")
"""Options of `trident serve` and `trident doctor` that may stand in the environment too."""

NEIGHBOURS = re.compile(r"TRIDENT_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")
"""What Kubernetes, and Docker's links, tell every container about a service of the name trident."""

NEIGHBOUR_PORT = re.compile(r"TRIDENT_(\w+_)?PORT")
ADDRESS = re.compile(r"(tcp|udp|sctp)://")


def check_names(environment: Mapping[str, str], settings: type[BaseSettings]) -> None:
    """Raises ValueError naming every TRIDENT_ name that is no setting, and the nearest that is, in one line."""
    prefix, delimiter = settings.model_config["env_prefix"], settings.model_config["env_nested_delimiter"] or ""
    known = [*OF_THE_COMMAND_LINE, *_names(settings, prefix, delimiter)]
    wrong = [
        name for name in sorted(_unknown(environment, prefix, known)) if not _told_by_neighbours(name, environment)
    ]
    if wrong:
        raise ValueError("; ".join(f"{name} is no setting: {_fix(name, prefix, delimiter, known)}" for name in wrong))


def _names(part: type[BaseModel], prefix: str, delimiter: str) -> Iterator[str]:
    """A part's names, and those of the parts in it; a part as a whole may be given as JSON."""
    for name, field in part.model_fields.items():
        yield f"{prefix}{name}".upper()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _names(field.annotation, f"{prefix}{name}{delimiter}", delimiter)


def _unknown(environment: Iterable[str], prefix: str, known: Iterable[str]) -> set[str]:
    """Case does not matter, as it does not where settings are read."""
    return {name for name in environment if name.upper().startswith(prefix) and name.upper() not in known}


def _told_by_neighbours(name: str, environment: Mapping[str, str]) -> bool:
    if NEIGHBOUR_PORT.fullmatch(name) and ADDRESS.match(environment[name]):
        return True
    return NEIGHBOURS.fullmatch(name) is not None


def _fix(name: str, prefix: str, delimiter: str, known: Iterable[str]) -> str:
    meant = {each.removeprefix(prefix): each for each in known}
    told = name.upper().removeprefix(prefix)
    # Without its part a name is far from itself, and near to others.
    nearest = [each for each in meant if each.endswith(f"{delimiter}{told}")]
    nearest = nearest or difflib.get_close_matches(told, meant, n=1)
    if not nearest:
        return "service/settings.py has them all"
    return f"did you mean {' or '.join(meant[each] for each in nearest)}?"
