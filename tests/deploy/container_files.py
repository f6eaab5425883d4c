"""Reading the Dockerfile and the Compose files."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Stage:
    """One stage of the Dockerfile."""

    name: str
    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [text for name, text in self.lines if name == instruction]

    def last(self, instruction: str) -> str:
        return self.all(instruction)[-1]


def read_dockerfile() -> dict[str, Stage]:
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    stages: dict[str, Stage] = {}
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if not line.strip():
            continue
        instruction, rest = line.split(maxsplit=1)
        if instruction == "FROM":
            base, _, name = rest.split()
            stages[name] = Stage(name, base)
        else:
            list(stages.values())[-1].lines.append((instruction, rest))
    return stages


STAGES = read_dockerfile()
IMAGES = ("gateway", "triton")


class ComposeLoader(yaml.SafeLoader):
    """Reads Compose's own tags."""


ComposeLoader.add_constructor("!reset", lambda loader, node: None)


def read_compose(name: str) -> dict[str, Any]:
    return yaml.load((ROOT / name).read_text(encoding="utf-8"), ComposeLoader)


COMPOSE = read_compose("docker-compose.yml")
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]


def options(command: list[str]) -> dict[str, str]:
    """`--name=value` arguments; a bare `--name` is "true"."""
    pairs = (argument.removeprefix("--").partition("=") for argument in command if argument.startswith("--"))
    return {name: value or "true" for name, _, value in pairs}


def triton_command() -> list[str]:
    return json.loads(STAGES["triton"].last("CMD"))
