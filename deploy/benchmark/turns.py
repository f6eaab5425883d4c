"""Variants timed in turns: a run of each, again and again, so that other work on the machine meets all alike."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deploy.parity.feeds import random_feeds
from deploy.triton.manifest import load_manifest
from deploy.triton.sessions import open_session

USUAL = ("qa:1x182", "qa:8x384", "qa:32x182", "encoder:1x512")
"""A question about a paragraph, long windows, a full batch, and one long source."""

CASE = re.compile(r"(\w+):(\d+)x(\d+)")

TURNS_HEADER = (
    "| graph, rows × tokens | bundle | ms a run | ms of processor | tokens/s | times faster |\n" + "|---" * 6 + "|"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A graph at one batch."""

    graph: str
    rows: int
    tokens: int
    """Of a row."""


def read_case(text: str) -> Case:
    """From GRAPH:ROWSxTOKENS. Raises ValueError for anything else."""
    found = CASE.fullmatch(text)
    if found is None or not int(found[2]) or not int(found[3]):
        raise ValueError(f"{text!r} is no case: write it as GRAPH:ROWSxTOKENS, for example {USUAL[0]}")
    return Case(graph=found[1], rows=int(found[2]), tokens=int(found[3]))


def in_turns(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, dict[str, list[float]]]:
    """Wall and processor milliseconds of every run, by variant; one run of each warms up."""
    times: dict[str, dict[str, list[float]]] = {name: {"wall_ms": [], "processor_ms": []} for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            wall, processor = time.perf_counter(), time.process_time()
            run()
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            if turn:
                times[name]["wall_ms"].append(wall * 1e3)
                times[name]["processor_ms"].append(processor * 1e3)
    return times


def compare_bundles(bundles: Sequence[Path], cases: Sequence[Case], *, threads: int, repeats: int) -> dict[str, Any]:
    """Raw times of the same random rows in every bundle, as JSON takes them.

    Raises BundleError, a ValueError, where a bundle cannot be read or lacks a graph.
    """
    measured = []
    for case in cases:
        runs = {}
        for bundle in bundles:
            manifest = load_manifest(bundle, verify=False)
            path = bundle / manifest.graph_file(case.graph)
            session = open_session(path, threads=threads, keeps_memory=False)
            feeds = random_feeds(session, int(manifest.config["vocab_size"]), [case.tokens] * case.rows)
            runs[str(bundle)] = partial(session.run, None, feeds)
        times = in_turns(runs, repeats)
        measured.append({"graph": case.graph, "rows": case.rows, "tokens": case.tokens, "times": times})
    return {"what": "turns", "threads": threads, "cases": measured}


def turns_table(result: Mapping[str, Any]) -> str:
    """A Markdown table of medians, each bundle against the first."""
    rows = [TURNS_HEADER]
    for case in result["cases"]:
        medians = {
            name: [statistics.median(times[unit]) for unit in ("wall_ms", "processor_ms")]
            for name, times in case["times"].items()
        }
        first = next(iter(medians.values()))
        for name, (wall, processor) in medians.items():
            rows.append(
                f"| {case['graph']}, {case['rows']} × {case['tokens']} | {name} | {wall:.0f} | {processor:.0f} "
                f"| {1e3 * case['rows'] * case['tokens'] / wall:.0f} | {first[0] / wall:.2f} |"
            )
    return "\n".join(rows)
