"""`trident train`, `trident evaluate …` and `trident data …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a checkpoint, or a running service, on labelled data.")
data_app = typer.Typer(no_args_is_help=True, help="Make the tokenizer and the training data from corpora.")

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
    from training.parallel.mesh import speaks_for_all
    from training.train import train as run

    loaded = load_recipe(recipe)
    if max_minutes is not None:
        loaded.schedule.max_minutes = max_minutes
    progress = run(loaded)
    if not speaks_for_all():
        return
    minutes = progress.elapsed_s / 60
    typer.echo(
        f"{loaded.run.output / 'weights'}: {progress.step} steps, {progress.tokens:,} tokens, {minutes:.1f} minutes"
    )


@data_app.command()
def tokenizer(
    corpora: Annotated[Path, typer.Argument(help="Folder of corpora.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tokenizer.json.")],
    vocabulary_size: Annotated[int, typer.Option(help="Tokens, special ones included.")] = 32_000,
) -> None:
    """Train the byte-level BPE tokenizer on a sample of the corpora."""
    from model.tokenizer import save_tokenizer, train_tokenizer
    from training.data.prepare import tokenizer_texts

    trained = train_tokenizer(tokenizer_texts(corpora), vocabulary_size, show_progress=True)
    save_tokenizer(trained, output)
    typer.echo(f"{output}: {trained.get_vocab_size()} tokens")


@data_app.command()
def prepare(
    corpora: Annotated[Path, typer.Argument(help="Folder of corpora.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for shards and development files.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of tokenizer.json.")],
    workers: Annotated[int, typer.Option(help="Files prepared at once.", min=1)] = 2,
    qa_window: Annotated[int, typer.Option(help="Longest question answering row, tokens.", min=64)] = 384,
    as_json: Annotated[bool, typer.Option("--json", help="Print every shard as JSON.")] = False,
) -> None:
    """Tokenise the corpora, mine questions and summaries, keep the development part apart."""
    from dataclasses import asdict

    from training.data.prepare import prepare as run

    shards = run(corpora, output, tokenizer, workers=workers, qa_window=qa_window)
    if as_json:
        typer.echo(json.dumps([asdict(shard) for shard in shards], ensure_ascii=False))
    else:
        typer.echo(f"{output}: {len(shards)} shards, {sum(shard.tokens for shard in shards):,} tokens")


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
