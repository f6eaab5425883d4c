"""A plan as tables and a Gantt for people, and as one JSON object for programs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, fields
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.text import Text

from training.planning.flops import parameter_count, training_flops
from training.planning.hardware import GIB, Cluster
from training.planning.memory import MemoryParts
from training.planning.pricing import Job, Price
from training.planning.schedule import gantt
from training.planning.search import Plan
from training.planning.stages import layer_count
from training.planning.tables import Column, folded

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
        "uneven": plan.uneven,
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
    _print_layouts(plan, console)
    console.print(f"{plan.fitting} of {plan.tried} layouts fit" + "".join(_refusals(plan)))
    if plan.uneven is not None:
        console.print(plan.uneven, style="yellow", highlight=False)
    console.print()
    console.print(f"[bold]{best.layout.name}[/], the fastest shown:")
    console.print(_memory(best, console))
    console.print(_traffic(best, console))
    _print_chart(best, console)
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


def _print_layouts(plan: Plan, console: Console) -> None:
    columns = [
        Column("#", [str(number) for number, _ in enumerate(plan.prices, start=1)]),
        Column("data × tensor ×\npipeline × sequence", [_sizes(price) for price in plan.prices], left=True),
        Column("ZeRO", [str(price.layout.zero) for price in plan.prices]),
        Column("rows × micro", [f"{price.layout.micro_rows} × {price.micro_batches}" for price in plan.prices]),
        Column("ckpt", ["yes" if price.layout.checkpointing else "no" for price in plan.prices]),
        Column("GiB", [f"{price.peak.total / GIB:.1f}" for price in plan.prices]),
        Column("bubble", [f"{price.bubble:.1%}" for price in plan.prices]),
        Column("step s", [f"{price.step_s:.3f}" for price in plan.prices]),
        Column("exposed", [f"{price.exposed_s / price.step_s:.1%}" for price in plan.prices]),
        Column("blocking", [f"{price.blocking_exposed_s / price.blocking_step_s:.1%}" for price in plan.prices]),
        Column("k tok/s", [f"{price.tokens_per_s / 1e3:,.0f}" for price in plan.prices]),
        Column("MFU", [f"{price.mfu:.1%}" for price in plan.prices]),
        Column("hours", [f"{price.hours:,.1f}" for price in plan.prices]),
    ]
    console.print(folded("Layouts, fastest first", columns, console))
    console.print("exposed: communication seen in a step, with overlap; blocking: without", style="dim italic")


def _sizes(price: Price) -> str:
    layout = price.layout
    return f"{layout.data} × {layout.tensor} × {layout.pipeline} × {layout.sequence}"


def _memory(price: Price, console: Console) -> Group:
    parts = [part.name for part in fields(MemoryParts)]
    columns = [
        Column("stage", [str(index) for index, _ in enumerate(price.stages)]),
        Column("layers", [str(layer_count(stage)) for stage in price.stages]),
        *(Column(name, [f"{getattr(each, name) / GIB:.2f}" for each in price.memory]) for name in (*parts, "total")),
    ]
    return folded("Memory of one GPU, GiB", columns, console)


def _traffic(price: Price, console: Console) -> Group:
    columns = [
        Column("purpose", [each.purpose for each in price.traffic] or ["nothing"], left=True),
        Column("MiB", [f"{each.sent_bytes / 2**20:,.1f}" for each in price.traffic] or ["0"]),
        Column("ms if waited for", [f"{each.seconds * 1e3:,.1f}" for each in price.traffic] or ["0"]),
    ]
    return folded("Sent by the busiest GPU in a step", columns, console)


def _print_chart(price: Price, console: Console) -> None:
    margin = len("stage 10 ")
    lines = gantt(price.timeline, width=min(CHART_WIDTH, console.width - margin), tail_s=price.ends_s)
    console.print()
    console.print(Text("\n".join(f"stage {index:<2} {line}" for index, line in enumerate(lines)), no_wrap=True))
    console.print(
        "digits: forward pass of a micro-batch; letters: its backward pass (a = 0); .: waiting; =: sums and update"
    )
    console.print()


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
    _print_layouts(plan, console)
    best = plan.prices[0]
    within = hours * 3600 * best.tokens_per_s
    console.print(f"{best.layout.name}: {best.hours:,.1f} h; {within / 1e9:,.0f} billion tokens fit into {hours:g} h.")
