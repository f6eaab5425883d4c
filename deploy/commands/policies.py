"""`trident bench policies`: a trace through the batching policies, in simulated time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from rich.table import Table

from deploy.benchmark.arrivals import Recorded
from deploy.benchmark.capacity import RawModel
from deploy.benchmark.costs import time_shapes
from service.batching.latency import BatchTime
from service.batching.policies import BatchLimits, Policy, Predictive, make_policy
from service.batching.simulation.costs import NAMED, Costs
from service.batching.simulation.foresight import Foresight
from service.batching.simulation.replay import NO_LIMIT, Replay
from service.batching.simulation.requests import ARRIVALS, Requests, offsets_of, requests_at
from service.batching.simulation.waiting import Waiting
from service.settings import PRETRAINED, BatchingSettings

ORACLE, WAITING = "oracle", "waiting"
POLICIES = ("predictive", "dynamic", "batch_first", "immediate", WAITING, ORACLE)
PARTS = ("refuses", "ages", "sheds", "groups", "hurries")
"""Of `predictive`, which can be left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What is simulated."""

    recorded: Recorded
    costs: Costs
    loads: Sequence[float]
    policies: Sequence[str]
    without: Sequence[str]
    arrivals: str
    rows: int
    seed: int
    knows_costs: bool
    """Whether policies know what batches cost, or learn it as the gateway does."""

    def __post_init__(self) -> None:
        if not self.policies:
            raise ValueError(f"--policies names none: choose among {', '.join(POLICIES)}")
        if self.arrivals not in ARRIVALS:
            raise ValueError(f"there are no arrivals {self.arrivals!r}: choose among {', '.join(ARRIVALS)}")

    @property
    def runs(self) -> int:
        """How many there will be."""
        return len(self.loads) * len(self.policies)

    def run(self, told: Callable[[str], None]) -> Iterator[dict[str, object]]:
        """Figures of every policy at every load; `told` what is next."""
        offsets = offsets_of(self.arrivals, self.recorded.offsets_s, np.random.default_rng(self.seed))
        for load in self.loads:
            requests = requests_at(load, self.recorded.source_tokens, offsets, self.costs, self.rows)
            for name in self.policies:
                told(f"{name} at {load:g}")
                yield {"policy": name, **self._replay(name, requests, load)}

    def _replay(self, name: str, requests: Requests, load: float) -> dict[str, object]:
        latency = self.costs if self.knows_costs or name == ORACLE else BatchTime()
        replay = Replay(
            requests=requests,
            costs=self.costs,
            policy=self._policy(name, requests),
            latency=latency,
            limits=BatchLimits(rows=self.rows, tokens=NO_LIMIT),
        )
        return replay.run().figures(requests, load)

    def _policy(self, name: str, requests: Requests) -> Policy:
        if name == ORACLE:
            return Foresight(requests)
        knobs = BatchingSettings.model_validate({"predictive": dict.fromkeys(self.without, False)})
        if name == WAITING:
            return Waiting(Predictive(**knobs.predictive.model_dump()))
        return make_policy(knobs.model_copy(update={"policy": name}))


def capped(recorded: Recorded, cap: int, *, decode: bool = False) -> Recorded:
    """The same with sources of 1 to `cap` tokens; with `decode`, the tokens that were written count as well."""
    tokens = recorded.source_tokens.clip(1, cap)
    return replace(recorded, source_tokens=tokens + recorded.new_tokens.clip(0) if decode else tokens)


def names(text: str, known: Sequence[str], what: str) -> list[str]:
    """Names between commas. Raises ValueError for an unknown one."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    for name in found:
        if name not in known:
            raise ValueError(f"there is no {what} {name!r}: choose among {', '.join(known)}")
    return list(dict.fromkeys(found))


def numbers(text: str) -> list[float]:
    """Loads between commas. Raises ValueError where one is none, or not positive."""
    try:
        loads = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ValueError(f"--loads is {text!r}: give numbers between commas, as in 0.5,0.8,1.5") from None
    if not loads or not all(0 < load < math.inf for load in loads):
        raise ValueError(f"--loads is {text!r}: give positive numbers, 1 for what the model alone could do")
    return loads


def costs_of(name: str) -> Costs:
    """The cost model of that name; `measured` is of the shipped bundle on this machine. Raises ValueError."""
    if name == "measured":
        return fitted(time_shapes(RawModel(PRETRAINED)))
    if name not in NAMED:
        raise ValueError(f"there are no costs {name!r}: choose cpu, gpu or measured")
    return NAMED[name]


def fitted(shapes: Iterable[tuple[int, int, float]]) -> Costs:
    """Costs from rows, tokens and seconds of batches."""
    model, seen = BatchTime(), list(shapes)
    # A fit remembers what it saw last: often enough, that is all of it.
    for rows, tokens, seconds in seen * 10:
        model.observe(rows, tokens, seconds)
    return Costs(*model.coefficients)


def table(figures: Sequence[dict[str, object]]) -> Table:
    """Figures for people."""
    shown = Table(box=None, pad_edge=False)
    for title in ("policy", "load", "attained", "goodput", "rejected", "late", "by length", "µs"):
        shown.add_column(title, justify="left" if title == "policy" else "right")
    for each in figures:
        by_length = " ".join("–" if share is None else f"{share:.2f}" for share in each["by_length"])  # type: ignore[attr-defined]
        shares = (f"{each[name]:.3f}" for name in ("attained", "goodput", "rejected", "late"))
        shown.add_row(str(each["policy"]), f"{each['load']:g}", *shares, by_length, f"{each['decision_us']:.0f}")
    return shown


def markdown(results: Sequence[dict[str, Any]]) -> str:
    """What `--output` wrote, as a table: shares in time, a line a policy and what it was run without.

    What all results have in common stands once, above the policies; columns say where they differ, and the load.
    """
    kinds = [_kind(result["settings"]) for result in results]
    common = [part for part in kinds[0] if all(part in kind for kind in kinds)]
    columns: list[str] = []
    lines: dict[str, dict[str, str]] = {}
    for kind, result in zip(kinds, results, strict=True):
        without = "".join(f" without `{part}`" for part in result["settings"]["without"])
        for each in result["figures"]:
            column = " ".join([*(part for part in kind if part not in common), f"{each['load']:g}"])
            if column not in columns:
                columns.append(column)
            lines.setdefault(f"{each['policy']}{without}", {})[column] = f"{each['attained']:.3f}"
    head = f"| {', '.join([*common, 'at load'])} | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}"
    rows = (f"| {name} | {' | '.join(cells.get(column, '–') for column in columns)} |" for name, cells in lines.items())
    return "\n".join([head, *rows])


def _kind(settings: dict[str, Any]) -> list[str]:
    return [settings["costs"], settings["arrivals"], f"first {settings['requests']}"]
