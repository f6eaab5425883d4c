"""`trident plan`: what a training run would cost on a cluster that need not exist."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

TOKENS_PER_PARAMETER = 20
"""Where no number of tokens is stated: Hoffmann et al. 2022."""


def plan(
    gpus: Annotated[int, typer.Option(help="How many GPUs.", min=1)] = 256,
    gpu: Annotated[str, typer.Option(help="Their type, e.g. a100-80gb, h100-80gb, h200, l40s.")] = "a100-80gb",
    preset: Annotated[
        str, typer.Option(help="guide (128 layers in 8 stages of 16), teacher, student or nano.")
    ] = "guide",
    change: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=N", help="Another value of a field, e.g. d_model=4096.")
    ] = None,
    tokens: Annotated[float | None, typer.Option(help="Tokens to train on; 20 a parameter without it.", min=1)] = None,
    hours: Annotated[float, typer.Option(help="Is this enough?", min=0.01)] = 72.0,
    rows: Annotated[int, typer.Option(help="Rows of a step, over all GPUs.", min=1)] = 2_048,
    source_tokens: Annotated[int, typer.Option(help="Width of a source.", min=1)] = 512,
    target_tokens: Annotated[int, typer.Option(help="Width of a continuation or summary.", min=1)] = 128,
    written: Annotated[bool, typer.Option("--written", help="All rows are continued; no other task.")] = False,
    layout: Annotated[
        str | None,
        typer.Option(help="Fix some of it, e.g. data=32,pipeline=8,zero=1,micro_rows=4,checkpointing=1."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Stages of even cost, or of even numbers of layers: cost, layers.")
    ] = None,
    precision: Annotated[str, typer.Option(help="bf16 or fp32.")] = "bf16",
    interconnect: Annotated[
        str | None, typer.Option(help="Between nodes: hdr200, ndr400, ethernet400, ethernet100, ethernet25.")
    ] = None,
    gpus_per_node: Annotated[int, typer.Option(help="GPUs that a node's links join.", min=1)] = 8,
    matmul_fraction: Annotated[float | None, typer.Option(help="Part of the peak in matrix products.")] = None,
    memory_fraction: Annotated[float | None, typer.Option(help="Part of the memory's bandwidth.")] = None,
    network_fraction: Annotated[float | None, typer.Option(help="Part of the links' bandwidth.")] = None,
    recurrent_step_us: Annotated[float | None, typer.Option(help="One step of a recurrence, µs.")] = None,
    reserved_gb: Annotated[float | None, typer.Option(help="Memory that is not the run's, GB.")] = None,
    top: Annotated[int, typer.Option(help="Layouts to show.", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Price every layout of a training run: memory, bubble, communication, hours; no GPU is needed."""
    from rich.console import Console

    from training.planning import report
    from training.planning.flops import parameter_count
    from training.planning.hardware import Assumptions, make_cluster
    from training.planning.presets import GUIDE, GUIDE_STAGES, planned_config
    from training.planning.priced_layout import PRECISIONS
    from training.planning.pricing import Job
    from training.planning.search import Wish, search
    from training.planning.workload import Network, mixed_work, written_work

    guided = preset == GUIDE and layout is None and split is None and gpus % GUIDE_STAGES == 0
    assumed: dict[str, Any] = {
        "matmul_fraction": matmul_fraction,
        "memory_fraction": memory_fraction,
        "network_fraction": network_fraction,
        "recurrent_step_s": None if recurrent_step_us is None else recurrent_step_us * 1e-6,
        "reserved_bytes": None if reserved_gb is None else reserved_gb * 1e9,
    }
    try:
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}: choose from {', '.join(PRECISIONS)}")
        assumptions = Assumptions(**{name: value for name, value in assumed.items() if value is not None})
        cluster = make_cluster(
            gpu, gpus, interconnect=interconnect, gpus_per_node=gpus_per_node, assumptions=assumptions
        )
        network = Network.of(planned_config(preset, _numbers(change or [])))
        wish = Wish(
            sizes={"pipeline": GUIDE_STAGES} if guided else _numbers((layout or "").split(",") if layout else []),
            split="layers" if guided else split or "cost",
            precision=precision,
        )
        work = (written_work if written else mixed_work)(rows, source_tokens, target_tokens)
        job = Job(network=network, work=work, tokens=tokens or TOKENS_PER_PARAMETER * parameter_count(network))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    found = search(job, cluster, wish, top=top)
    free = search(job, cluster, Wish(sizes={}, precision=precision), top=top) if guided else None
    if as_json:
        told = report.as_json(job, cluster, found, hours) | {"tokens_stated": tokens is not None}
        if free is not None:
            told["free_to_choose"] = report.as_json(job, cluster, free, hours)["layouts"]
        typer.echo(json.dumps(told))
        return
    console = Console()
    if guided:
        console.print(f"The guide's layout, {GUIDE_STAGES} stages of {network.layers // GUIDE_STAGES} layers:")
    report.print_plan(job, cluster, found, hours, console)
    if tokens is None:
        console.print(f"[dim]No --tokens were stated: {TOKENS_PER_PARAMETER} a parameter are taken.[/]")
    if free is not None:
        report.print_alternative(job, free, hours, console)


def _numbers(assignments: list[str]) -> dict[str, int]:
    """["data=2", …] as a table. Raises ValueError for anything else."""
    numbers = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not value.strip().isdigit():
            raise ValueError(f"{assignment!r} is not NAME=NUMBER")
        numbers[name.strip()] = int(value)
    return numbers
