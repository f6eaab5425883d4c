"""`trident bench peers`: Trident beside other servers and decoders, from installation to tables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deploy.benchmark.comparison.systems import Setting, System

RESULTS = Path("docs/results/peers")
QUICK_RESULTS = Path("artifacts/peers")
LOGS = QUICK_RESULTS / "logs"
REQUESTS = 4000
"""Of a trace, or drawn, at most."""

QUICK_DECODING = {"DECODING_ROWS": "[1, 8]", "DECODING_NEW_TOKENS": "32", "DECODING_REPEATS": "1"}


def peers(
    trace: Annotated[
        Path | None, typer.Option(help="CSV with TIMESTAMP,ContextTokens,GeneratedTokens; drawn without one.")
    ] = None,
    bundle: Annotated[Path | None, typer.Option(help="Folder of the bundle.", show_default="the shipped one")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="One round, few requests, settings as last recorded.")] = False,
    only: Annotated[str, typer.Option(help="Keys of servers and decoders, between commas; all without it.")] = "",
    rounds: Annotated[int, typer.Option(min=1, help="Repeats whose median counts; 1 where --quick.")] = 3,
    requests: Annotated[
        int | None,
        typer.Option(min=20, help="At every load.", show_default="what load 1 takes 16 s for; 4 s where --quick"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the results.", show_default=f"{RESULTS}; {QUICK_RESULTS} where --quick"),
    ] = None,
    document: Annotated[
        Path | None, typer.Option(help="Markdown file to write the tables into, between its markers.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="SVG to draw.", show_default="peers.svg in the folder of the results")
    ] = None,
    install: Annotated[
        bool, typer.Option(help="Make the environments that are missing; without it their systems are an error.")
    ] = True,
    seed: Annotated[int, typer.Option(help="Of lengths and arrivals that are drawn.")] = 0,
) -> None:
    """Compare Trident with other servers on the same model, cores and questions, and its engine with other decoders.

    A deadline is five times what the request takes alone through Trident, 50 ms at least, for all servers. Load 1 is
    what ONNX Runtime does with all requests sorted by length, in batches of 32, without a pause.
    """
    from deploy.benchmark.comparison.environments import make_missing
    from deploy.benchmark.comparison.measurement import Effort
    from deploy.benchmark.comparison.questions import shape_of
    from deploy.benchmark.comparison.run import Comparison
    from deploy.benchmark.comparison.systems import DECODERS, SERVERS, choose
    from deploy.benchmark.questions import sized_questions
    from deploy.commands.output import usage_errors
    from service.settings import PRETRAINED

    quick_effort = Effort(seconds=4, loads=3, rounds=1, sweeps=False)

    def say(what: str) -> None:
        typer.echo(what, err=True)

    with usage_errors():
        chosen = choose(only, [*SERVERS, *DECODERS])
    servers, decoders = ([each for each in group if each in chosen] for group in (SERVERS, DECODERS))
    say(_plan(servers, decoders, rounds=1 if quick else rounds, quick=quick))
    if install:
        make_missing(_environments(chosen), say)
    folder = output or (QUICK_RESULTS if quick else RESULTS)
    served = (bundle or PRETRAINED).resolve()
    questions = sized_questions(served)
    comparison = Comparison(
        bundle=served,
        shape=shape_of(trace, requests or REQUESTS, questions, seed),
        requests=requests,
        chosen=_chosen(servers),
        questions=questions,
        effort=quick_effort if quick else Effort(seconds=16, loads=5, rounds=rounds, sweeps=True),
        decoding={"DECODING_BUNDLE": str(served), **(QUICK_DECODING if quick else {})},
        output=folder,
        logs=LOGS,
        say=say,
    )
    if servers:
        comparison.servers(servers)
    if decoders:
        comparison.decoders(decoders)
    report(folder, document, plot or folder / "peers.svg")
    if comparison.failures:
        say(f"Not measured: {', '.join(dict.fromkeys(comparison.failures))}; their logs are in {LOGS}")
        raise typer.Exit(1)


def report(folder: Path, document: Path | None, plot: Path) -> None:
    """Print the tables of a folder of results, or write them into a document, and draw them.

    The folder may have been filled by several runs, of some systems each.
    """
    from deploy.benchmark import plots
    from deploy.benchmark.comparison.systems import DECODERS, SERVERS
    from deploy.benchmark.comparison.tables import decoders_table, servers_table
    from deploy.benchmark.report import replace_between
    from deploy.bundle.replacement import write_text
    from deploy.commands.output import read_object

    paths = [folder / f"{each.key}.json" for each in (*SERVERS, *DECODERS)]
    results = [read_object(path) for path in paths if path.is_file()]
    tables = {"peers": servers_table(results), "decoders": decoders_table(results)}
    if tables["peers"]:
        plots.plot(results, plot)
    if document is None:
        typer.echo("\n\n".join(filter(None, tables.values())))
        return
    text = document.read_text(encoding="utf-8")
    if tables["peers"]:
        drawn = Path(os.path.relpath(plot, document.parent)).as_posix()
        tables["peers"] += f"\n\n![Share in time and goodput over load, latency over rate, by server]({drawn})"
    for section, table in tables.items():
        text = replace_between(text, section, table) if table else text
    write_text(document, text)
    typer.echo(f"{document}: {len(results)} systems")


def _chosen(servers: Sequence[System]) -> dict[str, Setting]:
    """What the recorded comparison found best, where it is still one of the settings."""
    from deploy.commands.output import read_object

    found: dict[str, Setting] = {}
    for each in servers:
        path = RESULTS / f"{each.key}.json"
        setting: Setting = read_object(path).get("setting", {}) if path.is_file() else {}
        if setting in each.settings:
            found[each.key] = setting
    return found


def _environments(systems: Sequence[System]) -> list:
    return list(dict.fromkeys(each.environment for each in systems if each.environment is not None))


def _plan(servers: Sequence[System], decoders: Sequence[System], *, rounds: int, quick: bool) -> str:
    """What is about to happen, and about how long it takes on two cores."""
    server_s, decoder_s = (50, 25) if quick else (210, 90)
    settings = 0 if quick else sum(len(each.settings) for each in servers if len(each.settings) > 1)
    minutes = (rounds * (server_s * len(servers) + decoder_s * len(decoders)) + 60 * settings) / 60
    times = f", {rounds} rounds" if rounds > 1 else ""
    return f"{len(servers)} servers and {len(decoders)} decoders{times}: about {minutes:.0f} minutes once installed"
