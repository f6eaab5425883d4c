"""A place in a text that should not be learnt, and what stands there when the text is shown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Finding:
    """Personal data, a secret or an insult, in code points."""

    start: int
    end: int
    kind: str


def redact(text: str, findings: Iterable[Finding]) -> str:
    """The text with every finding replaced by its kind in brackets."""
    parts, place = [], 0
    for finding in sorted(findings):
        if finding.end <= place:
            continue
        parts += [text[place : max(place, finding.start)], f"[{finding.kind.upper()}]"]
        place = finding.end
    return "".join([*parts, text[place:]])
