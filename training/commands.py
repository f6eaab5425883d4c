"""`trident train`, `trident bench train` and `trident evaluate …`."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a checkpoint, or a running service, on labelled data.")

Checkpoint = Annotated[Path | None, typer.Option(help="Folder of trained weights, as `trident train` writes it.")]
Url = Annotated[str | None, typer.Option(help="A running service, e.g. http://127.0.0.1:8000, in place of weights.")]
Data = Annotated[Path, typer.Option(help="Labelled examples.")]
Limit = Annotated[int | None, typer.Option(help="Use the first N examples only.", min=1)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, as is done in any case.")]


def train(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe; training/recipes has examples.")],
    max_minutes: Annotated[float | None, typer.Option(help="In place of the recipe's.", min=0.01)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print how far it came as JSON.")] = False,
) -> None:
    """Train a network; a run that was killed goes on from its last checkpoint. SIGTERM and Ctrl-C save one first."""
    from training.config import load_recipe
    from training.interruption import InterruptedRun
    from training.parallel.mesh import speaks_for_all
    from training.train import train as run

    loaded = load_recipe(recipe)
    if max_minutes is not None:
        loaded.schedule.max_minutes = max_minutes
    try:
        progress = run(loaded)
    except InterruptedRun as ended:
        if speaks_for_all():
            typer.echo(ended, err=True)
        raise typer.Exit(128 + ended.number) from None
    if not speaks_for_all():
        return
    weights, minutes = loaded.run.output / "weights", progress.elapsed_s / 60
    if as_json:
        typer.echo(json.dumps({"weights": str(weights), **asdict(progress)}))
    else:
        typer.echo(f"{weights}: {progress.step} steps, {progress.tokens:,} tokens, {minutes:.1f} minutes")


def measure(
    output: Annotated[Path, typer.Option(help="Where the figures and the seconds of every step go (JSON).")],
    preset: Annotated[str, typer.Option(help="teacher, student or nano.")] = "teacher",
    rows: Annotated[int, typer.Option(help="Rows of a step.", min=1)] = 64,
    source_tokens: Annotated[int, typer.Option(help="Tokens of a source.", min=16)] = 512,
    target_tokens: Annotated[int, typer.Option(help="Tokens of a target.", min=16)] = 128,
    steps: Annotated[int, typer.Option(help="Steps measured.", min=1)] = 10,
    compile_layers: Annotated[bool, typer.Option("--compile", help="torch.compile the layers.")] = False,
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Activation checkpointing.")] = False,
    remark: Annotated[str, typer.Option(help="What the table should say of this run beside its options.")] = "",
) -> None:
    """Measure training steps on made-up tokens: throughput, and memory."""
    from training.benchmark import Workload
    from training.benchmark import measure as run

    workload = Workload(
        preset=preset,
        rows=rows,
        source_tokens=source_tokens,
        target_tokens=target_tokens,
        steps=steps,
        compile=compile_layers,
        activation_checkpointing=checkpointing,
        remark=remark,
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    with output.open("a"):  # fails now rather than when all is measured
        pass
    how = ", which compile, a minute or more" if compile_layers else ""
    typer.echo(f"{workload.warmup_steps} steps to warm up{how}, then {steps} that count", err=True)
    result = run(workload)
    output.write_text(json.dumps(result.as_dict(), indent=1) + "\n", encoding="utf-8")
    typer.echo(f"{output}: {result.tokens_per_s:,.0f} tokens/s on {result.device}")


@evaluate_app.command()
def qa(
    data: Data, checkpoint: Checkpoint = None, url: Url = None, limit: Limit = None, _as_json: AsJson = False
) -> None:
    """Exact match and F1 on questions in SQuAD's format, with the official normalisation."""
    from training.evaluation.evaluate import evaluate_questions
    from training.evaluation.predictors import make_predictor

    _print(evaluate_questions(make_predictor(checkpoint, url), data, limit))


@evaluate_app.command()
def summary(
    data: Data, checkpoint: Checkpoint = None, url: Url = None, limit: Limit = None, _as_json: AsJson = False
) -> None:
    """ROUGE-1, -2 and -L, and sacreBLEU, on JSON lines of {source, targets}."""
    from training.evaluation.evaluate import evaluate_summaries
    from training.evaluation.predictors import make_predictor

    _print(evaluate_summaries(make_predictor(checkpoint, url), data, limit))


@evaluate_app.command()
def generation(data: Data, checkpoint: Checkpoint = None, limit: Limit = None, _as_json: AsJson = False) -> None:
    """Bits per byte of continuations of JSON lines of {text}; needs the weights, not a service."""
    from training.evaluation.continuation import evaluate_continuation
    from training.evaluation.network_predictor import load_weights

    if checkpoint is None:
        raise ValueError("bits per byte need --checkpoint: a service does not tell probabilities")
    _print(evaluate_continuation(load_weights(checkpoint), data, limit))


def _print(figures: dict[str, float | int | str]) -> None:
    typer.echo(json.dumps(figures, indent=2))
