"""A plan as tables and a Gantt for people, and as one JSON object for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from training.planning.flops import parameter_count, training_flops
from training.planning.hardware import GIB, Cluster
from training.planning.memory import MemoryParts
from training.planning.pricing import Job, Price
from training.planning.schedule import gantt
from training.planning.search import Plan
from training.planning.stages import layer_count

BASIS = (
    "Parameters and FLOPs are counted exactly, and tested against the network; states, activations and bytes of "
    "collectives are formulas, tested against small real runs. Seconds are modelled from datasheets and the "
    "assumptions: no GPU was asked."
)
CHART_WIDTH = 96


def feasible(job: Job, price: Price, hours: float) -> bool:
    """Whether a layout passes all tokens in so many hours."""
    return price.hours <= hours


def as_json(job: Job, cluster: Cluster, plan: Plan, hours: float) -> dict[str, Any]:
    """Everything a plan says; bytes, seconds and hours as plain numbers."""
    best = plan.prices[0]
    return {
        "basis": BASIS,
        "cluster": {
            "gpu": asdict(cluster.gpu),
            "gpus": cluster.gpus,
            "gpus_per_node": cluster.gpus_per_node,
            "network": asdict(cluster.network),
            "assumptions": asdict(cluster.assumptions),
        },
        "job": {
            **asdict(job.network),
            "layers": job.network.layers,
            "parameters": parameter_count(job.network),
            "rows_per_step": job.work.rows,
            "tokens_per_step": job.work.tokens,
            "flops_per_token": training_flops(job.network, job.work) / job.work.tokens,
            "tokens": job.tokens,
        },
        "tried": plan.tried,
        "fitting": plan.fitting,
        "refused": plan.refused,
        "deadline": {
            "hours": hours,
            "tokens_within": hours * 3600 * best.tokens_per_s,
            "plausible": feasible(job, best, hours),
        },
        "layouts": [_price_as_dict(price) for price in plan.prices],
    }


def _price_as_dict(price: Price) -> dict[str, Any]:
    layout = price.layout
    return {
        "layout": asdict(layout),
        "split": price.split,
        "micro_batches": price.micro_batches,
        "stages": [
            {"blocks": len(stage), "layers": layer_count(stage), "memory_bytes": asdict(parts) | {"total": parts.total}}
            for stage, parts in zip(price.stages, price.memory, strict=True)
        ],
        "step_s": price.step_s,
        "blocking_step_s": price.blocking_step_s,
        "computing_step_s": price.computing_step_s,
        "bubble": price.bubble,
        "communication": [asdict(each) for each in price.traffic],
        "exposed_s": price.exposed_s,
        "blocking_exposed_s": price.blocking_exposed_s,
        "tokens_per_s": price.tokens_per_s,
        "mfu": price.mfu,
        "hours": price.hours,
        "gantt": gantt(price.timeline, width=CHART_WIDTH, tail_s=price.ends_s),
    }


def print_plan(job: Job, cluster: Cluster, plan: Plan, hours: float, console: Console) -> None:
    """For people."""
    best = plan.prices[0]
    console.print(Group(*_head(job, cluster)))
    console.print(_layouts(plan))
    console.print(f"{plan.fitting} of {plan.tried} layouts fit" + "".join(_refusals(plan)))
    console.print()
    console.print(f"[bold]{best.layout.name}[/], the fastest shown:")
    console.print(_memory(best))
    console.print(_traffic(best))
    console.print(_chart(best))
    console.print(_verdict(job, cluster, best, hours))
    console.print(Text(BASIS, style="dim"))


def _head(job: Job, cluster: Cluster) -> Iterator[RenderableType]:
    gpu, assumed, network = cluster.gpu, cluster.assumptions, job.network
    yield (
        f"[bold]{cluster.gpus} × {gpu.name}[/] ({gpu.bf16_flops / 1e12:.0f} TFLOP/s, {gpu.memory_bytes / 1e9:.0f} GB), "
        f"{cluster.gpus_per_node} a node at {gpu.link_bandwidth / 1e9:.0f} GB/s; {cluster.network.name} between nodes, "
        f"{cluster.network.bandwidth / 1e9:.1f} GB/s a GPU"
    )
    yield (
        f"[bold]{network.layers} layers[/] ({network.encoder_layers} encoder, {network.decoder_layers} decoder, "
        f"{network.pointer_layers} pointer), width {network.d_model}, {parameter_count(network) / 1e6:,.0f} M "
        f"parameters; {job.work.rows:.0f} rows a step of {job.work.source_tokens} + {job.work.target_tokens} tokens"
    )
    yield Text(
        f"Assumed: {assumed.matmul_fraction:.0%} of the peak in matrix products, {assumed.memory_fraction:.0%} of "
        f"memory's and {assumed.network_fraction:.0%} of links' bandwidth, {assumed.recurrent_step_s * 1e6:.0f} µs a "
        f"recurrent step, {assumed.reserved_bytes / 1e9:.1f} GB reserved",
        style="dim",
    )


def _layouts(plan: Plan) -> Table:
    table = Table(title="Layouts, fastest first")
    table.add_column("data × tensor × pipeline × sequence")
    for name in (
        "ZeRO",
        "rows × micro",
        "ckpt",
        "GiB",
        "bubble",
        "step s",
        "exposed",
        "blocking",
        "k tok/s",
        "MFU",
        "hours",
    ):
        table.add_column(name, justify="right")
    for price in plan.prices:
        layout = price.layout
        table.add_row(
            f"{layout.data} × {layout.tensor} × {layout.pipeline} × {layout.sequence}",
            str(layout.zero),
            f"{layout.micro_rows} × {price.micro_batches}",
            "yes" if layout.checkpointing else "no",
            f"{price.peak.total / GIB:.1f}",
            f"{price.bubble:.1%}",
            f"{price.step_s:.3f}",
            f"{price.exposed_s / price.step_s:.1%}",
            f"{price.blocking_exposed_s / price.blocking_step_s:.1%}",
            f"{price.tokens_per_s / 1e3:,.0f}",
            f"{price.mfu:.1%}",
            f"{price.hours:,.1f}",
        )
    table.caption = "exposed: communication seen in a step, with overlap; blocking: without"
    return table


def _memory(price: Price) -> Table:
    table = Table(title="Memory of one GPU, GiB")
    table.add_column("stage", justify="right")
    table.add_column("layers", justify="right")
    for part in fields(MemoryParts):
        table.add_column(part.name, justify="right")
    table.add_column("total", justify="right")
    for index, (stage, parts) in enumerate(zip(price.stages, price.memory, strict=True)):
        sizes = [getattr(parts, part.name) for part in fields(MemoryParts)]
        cells = [f"{size / GIB:.2f}" for size in (*sizes, parts.total)]
        table.add_row(str(index), str(layer_count(stage)), *cells)
    return table


def _traffic(price: Price) -> Table:
    table = Table(title="Sent by the busiest GPU in a step")
    for name in ("purpose", "MiB", "ms if waited for"):
        table.add_column(name, justify="left" if name == "purpose" else "right")
    for each in price.traffic:
        table.add_row(each.purpose, f"{each.sent_bytes / 2**20:,.1f}", f"{each.seconds * 1e3:,.1f}")
    if not price.traffic:
        table.add_row("nothing", "0", "0")
    return table


def _chart(price: Price) -> Text:
    lines = gantt(price.timeline, width=CHART_WIDTH, tail_s=price.ends_s)
    named = [f"stage {index:<2} {line}" for index, line in enumerate(lines)]
    legend = "digits: forward pass of a micro-batch; letters: its backward pass (a = 0); .: waiting; =: sums and update"
    return Text("\n".join(["", *named, f"{'':9}{legend}", ""]), no_wrap=True)


def _refusals(plan: Plan) -> Iterator[str]:
    for reason, count in plan.refused.items():
        yield f"; {count}: {reason}"


def _verdict(job: Job, cluster: Cluster, price: Price, hours: float) -> str:
    within = hours * 3600 * price.tokens_per_s
    told = f"{job.tokens / 1e9:,.1f} billion tokens take {price.hours:,.1f} h on this layout"
    if feasible(job, price, hours):
        return f"[bold green]{hours:g} h are plausible[/]: {told}; {within / 1e9:,.0f} billion fit into {hours:g} h."
    return f"[bold red]{hours:g} h are not plausible[/]: {told}; {within / 1e9:,.1f} billion fit into {hours:g} h."


def print_alternative(job: Job, plan: Plan, hours: float, console: Console) -> None:
    """What the same cluster could do in other layouts than the one asked for."""
    console.print()
    console.print("[bold]Free to choose[/], the same cluster:")
    console.print(_layouts(plan))
    best = plan.prices[0]
    within = hours * 3600 * best.tokens_per_s
    console.print(f"{best.layout.name}: {best.hours:,.1f} h; {within / 1e9:,.0f} billion tokens fit into {hours:g} h.")
