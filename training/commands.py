"""`trident train` and `trident evaluate …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a checkpoint, or a running service, on labelled data.")

Checkpoint = Annotated[Path | None, typer.Option(help="Folder of trained weights, as `trident train` writes it.")]
Url = Annotated[str | None, typer.Option(help="A running service, e.g. http://127.0.0.1:8000, in place of weights.")]
Data = Annotated[Path, typer.Option(help="Labelled examples.")]
Limit = Annotated[int | None, typer.Option(help="Use the first N examples only.", min=1)]


def train(
    recipe: Annotated[Path, typer.Argument(help="TOML recipe; training/recipes has examples.")],
    max_minutes: Annotated[float | None, typer.Option(help="In place of the recipe's.", min=0.01)] = None,
) -> None:
    """Train a network; a run that was killed goes on from its last checkpoint."""
    from training.config import load_recipe
    from training.train import train as run

    loaded = load_recipe(recipe)
    if max_minutes is not None:
        loaded.schedule.max_minutes = max_minutes
    progress = run(loaded)
    minutes = progress.elapsed_s / 60
    typer.echo(
        f"{loaded.run.output / 'weights'}: {progress.step} steps, {progress.tokens:,} tokens, {minutes:.1f} minutes"
    )


@evaluate_app.command()
def qa(data: Data, checkpoint: Checkpoint = None, url: Url = None, limit: Limit = None) -> None:
    """Exact match and F1 on questions in SQuAD's format, with the official normalisation."""
    from training.evaluate import evaluate_questions, make_predictor

    _print(evaluate_questions(make_predictor(checkpoint, url), data, limit))


@evaluate_app.command()
def summary(data: Data, checkpoint: Checkpoint = None, url: Url = None, limit: Limit = None) -> None:
    """ROUGE-1, -2 and -L, and sacreBLEU, on JSON lines of {source, targets}."""
    from training.evaluate import evaluate_summaries, make_predictor

    _print(evaluate_summaries(make_predictor(checkpoint, url), data, limit))


@evaluate_app.command()
def generation(data: Data, checkpoint: Checkpoint = None, limit: Limit = None) -> None:
    """Bits per byte of continuations of JSON lines of {text}; needs the weights, not a service."""
    from training.evaluate import evaluate_continuation
    from training.predictors import load_weights

    if checkpoint is None:
        raise ValueError("bits per byte need --checkpoint: a service does not tell probabilities")
    _print(evaluate_continuation(load_weights(checkpoint), data, limit))


def _print(figures: dict[str, float | int | str]) -> None:
    typer.echo(json.dumps(figures, indent=2))
