"""The one command line: `trident …`, also `python -m deploy …`.

Commands live beside the code they drive; this module only hangs them on one tree. Their modules import nothing heavy
at the top, so `trident --help` needs neither PyTorch nor ONNX Runtime.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from deploy.commands import bench, doctor, export, quantize, repository, serve
from training import commands as training
from training.data.commands import data_app
from training.planning import command as planning

app = typer.Typer(
    name="trident",
    help="Serve, export and train Trident's hybrid Transformer-RNN language model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"trident {version('trident')}")
        raise typer.Exit


@app.callback()
def root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Shared options of every command."""


app.command()(serve.serve)
app.command()(doctor.doctor)
app.command()(export.export)
app.command()(quantize.quantize)
app.add_typer(repository.app, name="repository")
app.command()(training.train)
app.add_typer(training.evaluate_app, name="evaluate")
app.add_typer(data_app, name="data")
bench.app.command("train")(training.measure)
app.command()(planning.plan)
app.add_typer(bench.app, name="bench")


def main() -> None:
    """Run the command line; users' mistakes become one line on stderr and exit status 1."""
    try:
        app(prog_name="trident")
    except (ValueError, OSError, ModuleNotFoundError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(explain(error))}", highlight=False)
        sys.exit(1)


def explain(error: Exception) -> str:
    """One line that says what went wrong, and how to fix a missing extra."""
    if isinstance(error, ModuleNotFoundError) and error.name in EXTRA_OF_MODULE:
        extra = EXTRA_OF_MODULE[error.name]
        return f"this command needs {error.name}, which is not installed: pip install -e '.[{extra}]'"
    return str(error)


EXTRA_OF_MODULE = {
    "torch": "training",
    "transformers": "training",
    "onnx": "export",
    "fastapi": "serve",
    "httpx": "serve",
    "uvicorn": "serve",
    "onnxruntime": "serve",
    "datatrove": "training",
    "detect_secrets": "training",
    "ftfy": "training",
    "phonenumbers": "training",
    "py3langid": "training",
    "rouge_score": "training",
    "sklearn": "training",
    "stdnum": "training",
    "sacrebleu": "training",
}
