"""When requests are sent: open-loop schedules, which never wait for answers.

A closed loop sends its next request only after an answer, so a slow server is loaded less exactly when it is slow
("coordinated omission"). Here the times are drawn before the first request leaves.
"""

from __future__ import annotations

import csv
from datetime import datetime
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
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = csv.DictReader(file)
        if "TIMESTAMP" not in (rows.fieldnames or []):
            raise ValueError(f"{path} has no TIMESTAMP column; its columns are {rows.fieldnames}")
        # Seven digits of a second; Python parses six.
        stamps = [datetime.fromisoformat(row["TIMESTAMP"][:26]).timestamp() for row in rows]
    arrivals = (np.sort(np.asarray(stamps)) - min(stamps)) / speedup
    return arrivals[arrivals < duration_s]
