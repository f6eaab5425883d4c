"""`trident data …`: the tokenizer, the pipeline's three stages and its reports, and the shards."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from training.data.pipeline.report import RunReport

data_app = typer.Typer(no_args_is_help=True, help="Make the tokenizer and the training data from corpora.")

Corpora = Annotated[Path, typer.Argument(help="Folder of corpora.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
StageOutput = Annotated[
    Path,
    typer.Option("--output", "-o", help="Folder for corpora/ and the report; an unfinished run in it goes on."),
]
Workers = Annotated[int | None, typer.Option(help="Tasks at once; 2, or what the settings say.", min=1)]
Executor = Annotated[str | None, typer.Option(help="local, ray or slurm; local, or what the settings say.")]
Config = Annotated[Path | None, typer.Option(help="TOML settings; docs/data.md lists them.")]


@data_app.command()
def tokenizer(
    corpora: Corpora,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tokenizer.json.")],
    vocabulary_size: Annotated[int, typer.Option(help="Tokens, special ones included.")] = 32_000,
) -> None:
    """Train the byte-level BPE tokenizer on a sample of the corpora."""
    from model.tokenizer import save_tokenizer, train_tokenizer
    from training.data.prepare import tokenizer_texts

    trained = train_tokenizer(tokenizer_texts(corpora), vocabulary_size, show_progress=True)
    save_tokenizer(trained, output)
    typer.echo(f"{output}: {trained.get_vocab_size()} tokens")


@data_app.command("filter")
def filter_(
    corpora: Corpora,
    output: StageOutput,
    workers: Workers = None,
    executor: Executor = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Leave out duplicates, other languages, low quality, personal data, secrets and abuse."""
    from training.data.pipeline.filtering import filter_corpora
    from training.data.pipeline.settings import load_settings

    settings = load_settings(config, workers=workers, executor=executor)
    _tell(filter_corpora(corpora, output, settings), output, as_json)


@data_app.command()
def augment(
    corpora: Corpora,
    output: StageOutput,
    config: Annotated[Path, typer.Option(help="TOML settings with [augment.pivots.LANGUAGE].")],
    workers: Workers = None,
    executor: Executor = None,
    as_json: AsJson = False,
) -> None:
    """Translate texts into other languages and back; leave out what repeats the originals."""
    from training.data.pipeline.augmentation import augment_corpora
    from training.data.pipeline.settings import load_settings

    settings = load_settings(config, workers=workers, executor=executor)
    _tell(augment_corpora(corpora, output, settings), output, as_json)


@data_app.command()
def select(
    corpora: Corpora,
    output: StageOutput,
    seeds: Annotated[Path, typer.Option(help="JSON lines with 'text': documents of the domain.")],
    top: Annotated[float, typer.Option(help="Part of the documents that is kept.")] = 0.1,
    workers: Workers = None,
    executor: Executor = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Keep the documents nearest to a domain's seeds, by TF-IDF."""
    from training.data.pipeline.selection import select_corpora
    from training.data.pipeline.settings import load_settings

    settings = load_settings(config, workers=workers, executor=executor)
    _tell(select_corpora(corpora, seeds, output, top, settings), output, as_json)


@data_app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="What `filter`, `augment` or `select` wrote.")],
    examples: Annotated[int, typer.Option(help="Examples of every reason.", min=0)] = 3,
    as_json: AsJson = False,
) -> None:
    """Show what a stage left out and why, with examples; personal data and the like are masked in them."""
    from training.data.pipeline.report import as_text, read_report

    found = read_report(folder, examples)
    typer.echo(json.dumps(asdict(found), ensure_ascii=False) if as_json else as_text(found))


@data_app.command()
def prepare(
    corpora: Corpora,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for shards and development files.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder of tokenizer.json.")],
    workers: Annotated[int, typer.Option(help="Files prepared at once.", min=1)] = 2,
    qa_window: Annotated[int, typer.Option(help="Longest question answering row, tokens.", min=64)] = 384,
    as_json: Annotated[bool, typer.Option("--json", help="Print every shard as JSON.")] = False,
) -> None:
    """Tokenise the corpora, mine questions and summaries, keep the development part apart."""
    from training.data.prepare import prepare as run

    shards = run(corpora, output, tokenizer, workers=workers, qa_window=qa_window)
    if as_json:
        typer.echo(json.dumps([asdict(shard) for shard in shards], ensure_ascii=False))
    else:
        typer.echo(f"{output}: {len(shards)} shards, {sum(shard.tokens for shard in shards):,} tokens")


def _tell(result: RunReport | None, output: Path, as_json: bool) -> None:
    """One line, or a JSON object without examples."""
    if result is None:
        typer.echo(json.dumps({"submitted": str(output)}) if as_json else f"{output}: jobs submitted to Slurm")
        return
    counts: dict[str, dict[str, int]] = {}
    for entry in result.dropped:
        counts.setdefault(entry.stage, {})[entry.reason] = entry.count
    if as_json:
        told: dict[str, Any] = {"corpora": str(output / "corpora"), "read": result.read, "written": result.written}
        typer.echo(json.dumps(told | {"dropped": counts}))
        return
    left_out = sum(sum(reasons.values()) for reasons in counts.values())
    typer.echo(
        f"{output / 'corpora'}: {result.written:,} of {result.read:,} documents; "
        f"{left_out:,} left out, see: trident data report {output}"
    )
