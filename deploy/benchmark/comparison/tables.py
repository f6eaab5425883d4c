"""Tables of what a comparison wrote: medians over its rounds, and each system as a share of the first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from deploy.benchmark.comparison.measurement import OVERLOAD
from deploy.benchmark.comparison.search import highest_load

SERVERS_HEADER = (
    "| server | highest load with 95 % in time (range) | of the first | goodput at 1.5, /s | of its saturation "
    "| saturation, /s | alone, ms | memory, MB | settings |\n"
    "|---|---|---|---|---|---|---|---|---|"
)

Result = dict[str, Any]


def servers_table(results: Sequence[Result]) -> str:
    """One line a server, in the order given; empty without any."""
    measured = [each for each in results if each["rounds"] and "saturation_per_s" in each["rounds"][0]]
    if not measured:
        return ""
    lines, first = [SERVERS_HEADER], 0.0
    for result in measured:
        loads = [_highest(each) for each in result["rounds"]]
        goodput, saturation = _median(result, _goodput), _median(result, lambda each: each["saturation_per_s"])
        first = first or median(loads)
        lines.append(
            f"| {result['name']} | {median(loads):.2f} ({min(loads):.2f} – {max(loads):.2f}) "
            f"| {median(loads) / first:.2f} | {goodput:.1f} | {goodput / saturation:.0%} | {saturation:.1f} "
            f"| {_median(result, lambda each: each['alone_ms']):.0f} "
            f"| {_median(result, lambda each: each['resident_bytes']) / 1e6:.0f} | {_setting(result['setting'])} |"
        )
    return "\n".join(lines)


def decoders_table(results: Sequence[Result]) -> str:
    """One line a decoder: seconds to the first token, and tokens a second after it, by rows; empty without any."""
    measured = [each for each in results if each["rounds"] and "settings" in each["rounds"][0]]
    if not measured:
        return ""
    rows = [run["rows"] for run in measured[0]["rounds"][0]["runs"]]
    source = measured[0]["rounds"][0]["settings"]["source_tokens"]
    heads = [f"first token of {each} × {source}, s | tokens /s, {each} rows" for each in rows]
    lines = [f"| decoder | {' | '.join(heads)} |", f"|{'---|' * (1 + 2 * len(rows))}"]
    for result in measured:
        cells = []
        for number, count in enumerate(rows):
            runs = [each["runs"][number] for each in result["rounds"]]
            first_s = median(second for run in runs for second in run["first_s"])
            whole_s = median(second for run in runs for second in run["whole_s"])
            more = result["rounds"][0]["settings"]["new_tokens"] - 1
            cells.append(f"{first_s:.2f} | {count * more / (whole_s - first_s):.0f}")
        lines.append(f"| {result['name']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _highest(measured: Result) -> float:
    return highest_load({run["load"]: run["attained"] for run in measured["runs"]})


def _goodput(measured: Result) -> float:
    return next(run["goodput_per_s"] for run in measured["runs"] if run["load"] == OVERLOAD)


def _median(result: Result, of: Callable[[Result], float]) -> float:
    return median(of(each) for each in result["rounds"])


def _setting(setting: dict[str, str]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in setting.items()) or "–"
