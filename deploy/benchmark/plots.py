"""Plots of raw results: how much is answered in time at which load, and how long it takes at which rate.

A curve is a policy or a server. Equal results give equal files, so that a plot changes only with what it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Point = dict[str, Any]
"""Figures of one run; `load`, `attained` and `goodput` at least."""

STYLE: Any = {
    # Text stays text: small, searchable, in the reader's own font.
    "svg.fonttype": "none",
    "svg.hashsalt": "trident",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
PANEL_INCHES = (4.2, 3.2)
MARKERS = "osD^vPX*"


@dataclass(frozen=True, kw_only=True, slots=True)
class Panel:
    """One diagram: what its axes show of a run."""

    title: str
    across: str
    up: str
    x: Callable[[Point], float | None]
    y: Callable[[Point], float | None]


OVER_LOAD = (
    Panel(
        title="Answered in time",
        across="load",
        up="share of all requests",
        x=lambda run: run["load"],
        y=lambda run: run["attained"],
    ),
    Panel(
        title="Goodput",
        across="load",
        up="in time a second, of load 1",
        x=lambda run: run["load"],
        y=lambda run: run["goodput"],
    ),
)
OVER_RATE = Panel(
    title="Latency",
    across="answers a second",
    up="median, ms",
    x=lambda run: run.get("answered_per_s"),
    y=lambda run: run.get("latency_ms_p50"),
)
"""Of live runs: a simulation answers in no time of its own."""


def curves(results: Iterable[dict[str, Any]]) -> dict[str, list[Point]]:
    """Runs by what they are drawn as: a policy, without its parts that were left out, or a server, in all its rounds.

    Raises ValueError for results of another kind.
    """
    found: dict[str, list[Point]] = {}
    for result in results:
        if result.get("what") == "policies":
            without = "".join(f" without {part}" for part in result["settings"]["without"])
            for run in result["figures"]:
                found.setdefault(f"{run['policy']}{without}", []).append(run)
                if "simulated" in run:
                    found.setdefault(f"{run['policy']}, simulated", []).append(run["simulated"])
        elif result.get("what") == "peers":
            found.setdefault(result["name"], []).extend(
                run for each in result["rounds"] for run in each.get("runs", ())
            )
        else:
            raise ValueError("only results of `bench policies` and of `bench peers` can be plotted")
    return {name: sorted(runs, key=lambda run: run["load"]) for name, runs in found.items() if _over_load(runs)}


def _over_load(runs: Sequence[Point]) -> bool:
    return bool(runs) and all("attained" in run for run in runs)


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Write an SVG of all results. Raises ValueError where there is nothing to plot."""
    drawn = curves(results)
    if not drawn:
        raise ValueError("the results hold no runs at any load")
    live = any("answered_per_s" in run for runs in drawn.values() for run in runs)
    panels = (*OVER_LOAD, OVER_RATE) if live else OVER_LOAD
    with mpl.rc_context(STYLE):
        width, height = PANEL_INCHES
        figure = Figure(figsize=(width * len(panels), height), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw(axes, panel, drawn)
        figure.axes[0].legend(fontsize=8)
        # Neither the day nor the version of what has drawn it.
        figure.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def _draw(axes: Axes, panel: Panel, drawn: dict[str, list[Point]]) -> None:
    live = [name for name in drawn if not name.endswith(", simulated")]
    for name, runs in drawn.items():
        number = live.index(name.removesuffix(", simulated"))
        points = [(panel.x(run), panel.y(run)) for run in runs]
        known = [(x, y) for x, y in points if x is not None and y is not None]
        if known:
            axes.plot(
                *zip(*known, strict=True),
                label=name,
                color=f"C{number % 10}",
                marker=MARKERS[number % len(MARKERS)],
                markersize=4,
                # One curve often lies on another.
                markerfacecolor="none",
                linewidth=1.3,
                linestyle="-" if name in live else ":",
            )
    axes.set(title=panel.title, xlabel=panel.across, ylabel=panel.up)
    axes.set_ylim(bottom=0)
