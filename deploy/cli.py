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
from deploy.commands.explanation import MISTAKES, explain
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
    except MISTAKES as error:
        told = explain(error, next(iter(sys.argv[1:]), None))
        Console(stderr=True, soft_wrap=True).print(f"[bold red]error:[/] {escape(told)}", highlight=False)
        sys.exit(1)
