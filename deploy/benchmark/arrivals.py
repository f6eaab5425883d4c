"""When requests are sent: open-loop schedules, which never wait for answers.

A closed loop sends its next request only after an answer, so a slow server is loaded less exactly when it is slow
("coordinated omission"). Here the times are drawn before the first request leaves.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path

import numpy as np


def poisson(rate_per_s: float, duration_s: float, seed: int) -> np.ndarray:
    """Arrival times, seconds from the start, of a Poisson process.

    Raises:
        ValueError: a rate or duration that is not positive.
    """
    if rate_per_s <= 0 or duration_s <= 0:
        raise ValueError(f"rate and duration must be positive, got {rate_per_s} per second for {duration_s} s")
    generator = np.random.default_rng(seed)
    count = generator.poisson(rate_per_s * duration_s)
    return np.sort(generator.uniform(0.0, duration_s, count))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Recorded:
    """A trace, in the order of its arrivals."""

    offsets_s: np.ndarray
    """FP64 [R]: seconds since the first."""

    source_tokens: np.ndarray
    """INT [R]; empty where the file does not say."""

    new_tokens: np.ndarray


def trace(path: Path, duration_s: float, speedup: float) -> np.ndarray:
    """Arrival times of a recorded trace (CSV with a TIMESTAMP column, as Azure's LLM inference traces).

    Args:
        path: The CSV file.
        duration_s: How much of the compressed trace to replay, seconds.
        speedup: By how much time is compressed; 2 sends twice as fast as it was recorded.

    Raises:
        ValueError: no TIMESTAMP column, or a speed-up that is not positive.
    """
    if speedup <= 0:
        raise ValueError(f"speedup must be positive, got {speedup}")
    arrivals = read_trace(path, lengths=False).offsets_s / speedup
    return arrivals[arrivals < duration_s]


def read_trace(path: Path, *, lengths: bool, first: int | None = None) -> Recorded:
    """A trace as Azure publishes them: TIMESTAMP, and with `lengths` ContextTokens and GeneratedTokens.

    Args:
        path: The CSV file.
        lengths: Whether lengths are needed.
        first: How many rows are read; all without it.

    Raises:
        ValueError: a column is missing, a row cannot be read, or there is none.
    """
    columns = ["TIMESTAMP", *(["ContextTokens", "GeneratedTokens"] if lengths else [])]
    wanted = ", ".join(columns)
    stamps, numbers = [], []
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        if missing := [column for column in columns if column not in (rows.fieldnames or [])]:
            found = ", ".join(rows.fieldnames or ["none"])
            raise ValueError(f"{path} has no column {missing[0]} (it has: {found}): name a CSV file with {wanted}")
        for number, row in enumerate(islice(rows, first), 2):
            try:
                # Seven digits of a second; Python parses six.
                stamps.append(datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp())
                numbers.append([int(row[column]) for column in columns[1:]])
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}, cannot be read: {error}") from None
    if not stamps:
        raise ValueError(f"{path} has no rows")
    order = np.argsort(stamps, kind="stable")
    tokens = np.array(numbers, np.int64).reshape(len(stamps), -1)[order]
    return Recorded(
        offsets_s=np.asarray(stamps)[order] - min(stamps),
        source_tokens=tokens[:, 0] if lengths else tokens[:, :0],
        new_tokens=tokens[:, 1] if lengths else tokens[:, :0],
    )
