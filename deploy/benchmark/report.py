"""Tables from raw results: every figure in docs/benchmarks.md comes from here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

HEADER = (
    "| run | requests | failed | goodput /s | attained | TTFT p50 / p95 ms | latency p50 / p95 ms | tokens /s |\n"
    "|---|---|---|---|---|---|---|---|"
)

TRAINING_HEADER = (
    "| network, device | rows × tokens | how | thousand tokens /s | step, ms (range) | MFU | activations, GB |\n"
    "|---|---|---|---|---|---|---|"
)

KERNEL_HEADER = "| operator | nodes | ms | of the time | GFLOP/s | of the ceiling |\n|---|---|---|---|---|---|"


def summarise(result: dict[str, Any]) -> dict[str, float | None]:
    """Figures of one run.

    Returns:
        `requests`, `failed`, `goodput_per_s` (answers within the deadline, a second), `attainment` (their share of all
        requests), `ttft_ms_p50`, `ttft_ms_p95`, `latency_ms_p50`, `latency_ms_p95`, `tokens_per_s`. Percentiles of
        nothing are None. A stream that ended in an error, or without its end, has failed whatever its status.
    """
    samples = result["samples"]
    deadline_s = result["settings"]["deadline_ms"] / 1e3
    answered = [sample for sample in samples if sample["status"] == 200 and not sample.get("error")]
    within = [sample for sample in answered if sample["total_s"] <= deadline_s]
    # The run lasts until its last answer: a backlog counts against the rate.
    span_s = max((sample["scheduled_s"] + sample["total_s"] for sample in samples), default=0.0) or 1.0
    first = [sample["ttft_s"] for sample in answered if sample["ttft_s"] is not None]
    latency = [sample["total_s"] for sample in answered]
    return {
        "requests": len(samples),
        "failed": len(samples) - len(answered),
        "goodput_per_s": len(within) / span_s,
        "attainment": len(within) / max(1, len(samples)),
        "ttft_ms_p50": _percentile_ms(first, 50),
        "ttft_ms_p95": _percentile_ms(first, 95),
        "latency_ms_p50": _percentile_ms(latency, 50),
        "latency_ms_p95": _percentile_ms(latency, 95),
        "tokens_per_s": sum(sample["tokens"] for sample in answered) / span_s,
    }


def _percentile_ms(seconds: Iterable[float], percent: float) -> float | None:
    values = np.asarray(list(seconds))
    return float(np.percentile(values, percent) * 1e3) if values.size else None


def table(results: Iterable[dict[str, Any]]) -> str:
    """A Markdown table, one row a result."""
    rows = [HEADER]
    for result in results:
        figures = summarise(result)
        rows.append(
            f"| {result['name']} | {figures['requests']:.0f} | {figures['failed']:.0f} "
            f"| {figures['goodput_per_s']:.2f} | {figures['attainment']:.0%} "
            f"| {_whole(figures['ttft_ms_p50'])} / {_whole(figures['ttft_ms_p95'])} "
            f"| {_whole(figures['latency_ms_p50'])} / {_whole(figures['latency_ms_p95'])} "
            f"| {figures['tokens_per_s']:.1f} |"
        )
    return "\n".join(rows)


def training_table(results: Iterable[dict[str, Any]]) -> str:
    """A Markdown table of what `bench train` wrote, one row a result."""
    rows = [TRAINING_HEADER]
    for result in results:
        seconds = np.array(result["step_s"])
        ways = [name.replace("_", " ") for name in ("compile", "activation_checkpointing") if result[name]] or ["eager"]
        ways += [remark] if (remark := result.get("remark")) else []
        activations, mfu = result["activation_peak_bytes"], result["mfu"]
        rows.append(
            f"| {result['preset']}, {result['machine']['device']} "
            f"| {result['rows']} × ({result['source_tokens']} + {result['target_tokens']}) "
            f"| {', '.join(ways)} | {result['tokens_per_s'] / 1e3:.0f} "
            f"| {np.median(seconds) * 1e3:.0f} ({seconds.min() * 1e3:.0f} – {seconds.max() * 1e3:.0f}) "
            f"| {'–' if mfu is None else f'{mfu:.1%}'} "
            f"| {'–' if activations is None else f'{activations / 1e9:.1f}'} |"
        )
    return "\n".join(rows)


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def replace_between(text: str, name: str, table: str) -> str:
    """Put a table between `<!-- begin NAME -->` and `<!-- end NAME -->`.

    Raises:
        ValueError: the markers are missing.
    """
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"the document has no {begin} … {end} to fill: put both lines in, or name another --section")
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    return f"{before}{begin}\n{table}\n{end}{after}"


def kernel_table(result: dict[str, Any]) -> str:
    """Ceilings of the machine, and a table a graph, of what `bench kernels` measured."""
    ceilings = result["ceilings"]
    parts = [
        f"Ceilings: {ceilings['fp32_gflop_per_s']:.0f} GFLOP/s in float32, {ceilings['int8_gop_per_s']:.0f} in 8 bits, "
        f"{ceilings['copy_gb_per_s']:.1f} GB/s copied on one thread."
    ]
    for graph in result["graphs"]:
        rows = [
            f"| {each['kind']} | {each['nodes']} | {each['ms']:.2f} | {each['share']:.1%} "
            f"| {_reached(each['gop_per_s'], '.0f')} | {_reached(each['of_ceiling'], '.0%')} |"
            for each in graph["operators"]
        ]
        title = f"{graph['graph']}, {graph['rows']} × {graph['tokens']} tokens: {graph['run_ms']:.1f} ms a run"
        parts.append("\n".join([title, "", KERNEL_HEADER, *rows]))
    return "\n\n".join(parts)


def _reached(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
