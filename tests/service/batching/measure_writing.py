"""What policies attain where answers are written, in simulated time.

python -m tests.service.batching.measure_writing --output docs/results/writing.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from service.batching.policies import Dynamic, Policy, Predictive
from tests.service.batching.written_prompts import MACHINE, beside_flex, only, prompts, run

LOADS = (0.3, 0.6, 0.8, 1.2)
PATIENCE = (5.0, 8.0, 20.0)
SEEDS = (1, 2)
POLICIES: dict[str, Callable[[], Policy]] = {
    "predictive": Predictive,
    "predictive without spares": partial(Predictive, spares=False),
    "dynamic": partial(Dynamic, 0.002),
}


def at_load(name: str, load: float, seed: int) -> dict[str, Any]:
    """One class, deadlines of five times what a request takes alone."""
    outcome = run(prompts(load, seed=seed), POLICIES[name]())
    shares = {key: float(getattr(outcome, key).mean()) for key in ("in_time", "rejected", "late")}
    return {"what": "load", "policy": name, "load": load, "seed": seed, **shares}


def at_patience(name: str, patience: float, seed: int) -> dict[str, Any]:
    """Priority beside as much flex, at load 1.2; and the same without flex."""
    given, urgent = beside_flex(patience, seed)
    outcome, alone = run(given, POLICIES[name]()), run(only(given, urgent), POLICIES[name]())
    flex_s = (outcome.ended_s - given.arrivals_s)[~urgent]
    return {
        "what": "classes",
        "policy": name,
        "patience": patience,
        "seed": seed,
        "priority": float(outcome.in_time[urgent].mean()),
        "priority_without_flex": float(alone.in_time.mean()),
        "flex_longest_s": float(flex_s.max()),
        "arrivals_last_s": float(given.arrivals_s[-1]),
    }


def runs() -> Iterator[partial[dict[str, Any]]]:
    """All of them."""
    for name in POLICIES:
        for seed in SEEDS:
            yield from (partial(at_load, name, load, seed) for load in LOADS)
            yield from (partial(at_patience, name, patience, seed) for patience in PATIENCE)


def main() -> None:
    """Measure, and write the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    with ProcessPoolExecutor() as pool:
        found = [future.result() for future in [pool.submit(each) for each in runs()]]
    machine = json.loads(json.dumps(asdict(MACHINE)))
    given.output.write_text(json.dumps({"machine": machine, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
