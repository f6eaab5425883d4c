"""`trident bench`: load a running service, and make tables from what was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.commands.peers import peers

app = typer.Typer(
    no_args_is_help=True, help="Measure a running service, graphs, or training; make tables from raw results."
)
app.command()(peers)


@app.command()
def load(
    output: Annotated[Path, typer.Option(help="Where the raw samples go (JSON).")],
    url: Annotated[str, typer.Option(help="The service.")] = "http://127.0.0.1:8000",
    name: Annotated[str, typer.Option(help="Name of the run in tables.")] = "load",
    rate: Annotated[float, typer.Option(help="Requests per second, Poisson arrivals.")] = 2.0,
    duration: Annotated[float, typer.Option(help="Seconds during which requests are sent.")] = 30.0,
    mix: Annotated[str, typer.Option(help="Weights of the tasks.")] = "generation=1,qa=1,summary=1",
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest generated text, tokens.")] = 64,
    deadline_ms: Annotated[float, typer.Option(help="An answer within this counts as goodput.")] = 5000.0,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request has failed.")] = 120.0,
    trace: Annotated[Path | None, typer.Option(help="CSV with TIMESTAMPs to replay in place of Poisson.")] = None,
    speedup: Annotated[float, typer.Option(help="Time compression of the trace.")] = 1.0,
    queries: Annotated[Path | None, typer.Option(help="JSONL of {path, body} in place of the built-in texts.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of arrivals and texts.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Send an open-loop load and record every sample."""
    import asyncio

    from rich.progress import Progress

    from deploy.benchmark import arrivals, report, workload
    from deploy.benchmark import load as generator
    from deploy.bundle.replacement import write_text

    times = arrivals.trace(trace, duration, speedup) if trace else arrivals.poisson(rate, duration, seed)
    source = (
        workload.from_file(queries) if queries else workload.built_in(workload.parse_mix(mix), max_new_tokens, seed)
    )
    if output.is_dir():
        raise ValueError(f"{output} is a folder: name a file for the samples with --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    generator.check_answers(url)
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"{len(times)} requests", total=len(times))
        samples = asyncio.run(generator.run(url, times, source, timeout, lambda _: progress.advance(bar)))
    settings = {
        "rate_per_s": None if trace else rate,
        "trace": trace.name if trace else None,
        "speedup": speedup if trace else None,
        "duration_s": duration,
        "mix": mix,
        "max_new_tokens": max_new_tokens,
        "deadline_ms": deadline_ms,
        "seed": seed,
    }
    result = generator.record(name, settings, samples)
    write_text(output, json.dumps(result, indent=1) + "\n")
    figures = report.summarise(result)
    if as_json:
        typer.echo(json.dumps(figures, allow_nan=False))
    else:
        typer.echo(report.table([result]))
    if figures["failed"]:
        raise typer.Exit(1)


@app.command()
def policies(
    trace: Annotated[Path, typer.Option(help="CSV with TIMESTAMP,ContextTokens,GeneratedTokens.")],
    costs: Annotated[str, typer.Option(help="What batches cost: cpu, gpu, or measured (here, now).")] = "cpu",
    loads: Annotated[
        str, typer.Option(help="1 is what the model could do with all requests sorted.")
    ] = "0.5,0.8,1,1.5",
    names: Annotated[
        str, typer.Option("--policies", help="predictive, dynamic, batch_first, immediate, waiting, oracle.")
    ] = "predictive,dynamic,batch_first,immediate",
    arrivals: Annotated[str, typer.Option(help="The trace's, stretched to a load; or poisson, bursty.")] = "trace",
    cap: Annotated[int, typer.Option(min=1, help="Longest source, tokens; longer ones are cut.")] = 512,
    requests: Annotated[int | None, typer.Option(min=2, help="How many of the trace; all without it.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Largest batch.")] = 32,
    without: Annotated[str, typer.Option(help="Leave out of predictive: refuses, ages, sheds, groups, hurries.")] = "",
    knows_costs: Annotated[
        bool, typer.Option("--knows-costs", help="Tell policies what batches cost; else they learn it.")
    ] = False,
    decode: Annotated[
        bool, typer.Option("--decode", help="Count the generated tokens as well: a pass of source and answer.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of arrivals that are not the trace's.")] = 0,
    url: Annotated[
        list[str] | None,
        typer.Option(help="A running service, POLICY=URL or URL (predictive), to replay to; repeat for several."),
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Also write figures and settings into this JSON file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Compare batching policies on a trace, in simulated time.

    One model takes a batch at a time, and one pass of it answers a request. A deadline is five times what the request
    takes alone, 50 ms at least. Load 1 is what the model does with all requests of the trace sorted by length, in
    batches of --rows, without a pause: their number over the sum of the batches' seconds. attained: requests answered
    in time, of all. goodput: requests answered in time a second, as a share of what load 1 is. by length: attained of
    up to 64, 128, 256 and more tokens. `waiting` is predictive that waits for company where a forecast says that it
    pays; `oracle` knows all arrivals and searches, which is slow, and no bound.

    With --url the requests are questions to running services, one after another at each load; the same requests are
    simulated beside each with what batches cost here, and points tells how far apart both are in attained. Load 1 is
    then raw ONNX Runtime here, and what a request takes alone is measured on the service.
    """
    from rich.progress import Progress

    from deploy.benchmark.arrivals import read_trace
    from deploy.bundle.replacement import write_text
    from deploy.commands import policies as simulated
    from deploy.commands.live_policies import live_comparison, run_live
    from deploy.commands.output import usage_errors

    if url:
        with usage_errors():
            if decode or knows_costs or without:
                raise ValueError("--decode, --knows-costs and --without are for simulations: leave them out with --url")
            live = live_comparison(trace, url, loads=loads, arrivals=arrivals, cap=cap, requests=requests, seed=seed)
        run_live(live, output=output, as_json=as_json)
        return
    with usage_errors():
        comparison = simulated.Comparison(
            recorded=simulated.capped(read_trace(trace, lengths=True, first=requests), cap, decode=decode),
            costs=simulated.costs_of(costs),
            loads=simulated.numbers(loads),
            policies=simulated.names(names, simulated.POLICIES, "policy"),
            without=simulated.names(without, simulated.PARTS, "part of predictive"),
            arrivals=arrivals,
            rows=rows,
            seed=seed,
            knows_costs=knows_costs,
        )
    figures = []
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=comparison.runs)
        for each in comparison.run(lambda what: progress.update(bar, description=what)):
            figures.append(each)
            progress.advance(bar)
    if output is not None:
        settings = {
            "trace": trace.name,
            "requests": len(comparison.recorded.offsets_s),
            "costs": costs,
            "coefficients": list(comparison.costs.coefficients),
            "arrivals": arrivals,
            "cap": cap,
            "decode": decode,
            "rows": rows,
            "without": comparison.without,
            "knows_costs": knows_costs,
            "seed": seed,
        }
        write_text(output, json.dumps({"what": "policies", "settings": settings, "figures": figures}, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(figures, allow_nan=False))
    else:
        Console(soft_wrap=True).print(simulated.table(figures))


@app.command()
def turns(
    bundle: Annotated[list[Path], typer.Option(help="A bundle; repeat it. The first is what others are held against.")],
    case: Annotated[
        list[str] | None, typer.Option(help="GRAPH:ROWSxTOKENS; repeat for several.", show_default="the usual four")
    ] = None,
    threads: Annotated[int, typer.Option(min=0, help="Threads of an operator; 0 is one a physical core.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Runs of each whose median counts.")] = 5,
    output: Annotated[Path | None, typer.Option(help="Where the raw times go (JSON).")] = None,
) -> None:
    """Time the graphs of several bundles in turns, so that other work on the machine meets all of them alike."""
    from deploy.benchmark.turns import USUAL, compare_bundles, read_case, turns_table
    from deploy.bundle.replacement import write_text
    from deploy.commands.output import usage_errors

    with usage_errors():
        cases = [read_case(each) for each in case or USUAL]
    result = compare_bundles(bundle, cases, threads=threads, repeats=repeats)
    if output is not None:
        write_text(output, json.dumps(result, indent=1) + "\n")
    typer.echo(turns_table(result))


@app.command("report")
def make_report(
    results: Annotated[
        list[Path], typer.Argument(help="Raw results of `bench load`, `bench policies` or `bench train`.")
    ],
    document: Annotated[
        Path | None, typer.Option(help="Markdown file to write the table into, between its markers.")
    ] = None,
    section: Annotated[
        str, typer.Option(help="NAME of the document's <!-- begin NAME --> … <!-- end NAME -->.")
    ] = "load",
    plot: Annotated[
        Path | None, typer.Option(help="Draw results of `bench policies` or `bench peers` into this SVG instead.")
    ] = None,
) -> None:
    """Print the table of some results, write it into a document, or plot them."""
    from deploy.benchmark import report
    from deploy.bundle.replacement import write_text
    from deploy.commands.output import read_object

    if document is not None and not document.is_file():
        raise ValueError(f"there is no document {document} to put the table into: name one with --document")
    loaded = [read_object(path) for path in results]
    if plot is not None:
        from deploy.benchmark import plots

        plots.plot(loaded, plot)
        typer.echo(f"{plot}: {len(loaded)} results")
        return
    of_policies = [result.get("what") == "policies" for result in loaded]
    if any(of_policies) and not all(of_policies):
        raise ValueError("results of `bench policies` and others do not fit one table: name one kind")
    for path, result in zip(results, loaded, strict=True):
        if not (result.get("what") == "policies" or "step_s" in result or {"samples", "settings"} <= result.keys()):
            raise ValueError(f"{path} holds no results: give what a `bench` command wrote to --output")
    of_training = ["step_s" in result for result in loaded]
    if any(of_training) and not all(of_training):
        raise ValueError("results of `bench load` and of `bench train` do not fit one table: name one kind")
    if all(of_policies):
        from deploy.commands.policies import markdown

        table = markdown(loaded)
    else:
        table = report.training_table(loaded) if any(of_training) else report.table(loaded)
    if document is None:
        typer.echo(table)
        return
    text = document.read_text(encoding="utf-8")
    write_text(document, report.replace_between(text, section, table))
    typer.echo(f"{document}: {len(loaded)} runs in section {section}")


@app.command()
def kernels(
    bundle: Annotated[Path, typer.Option(help="The bundle whose graphs are profiled.")] = Path("model/pretrained"),
    graph: Annotated[list[str] | None, typer.Option(help="A graph; repeat for several. Default: qa, encoder.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Rows of the batch.")] = 1,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens of a row.")] = 182,
    threads: Annotated[int, typer.Option(min=0, help="Threads of an operator; 0 is one a physical core.")] = 0,
    repeats: Annotated[int, typer.Option(min=1, help="Runs whose median counts.")] = 5,
    output: Annotated[Path | None, typer.Option(help="Where the result goes (JSON).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Time graphs by operator, against a float32 product, an 8-bit product and a copy on this machine."""
    from dataclasses import asdict

    from rich.progress import Progress

    from deploy.benchmark.kernels import check_profile, measure_ceilings, profile_graph
    from deploy.benchmark.report import kernel_table
    from deploy.bundle.replacement import write_text

    names = graph or ["qa", "encoder"]
    check_profile(bundle, names, tokens)
    if output is not None and output.is_dir():
        raise ValueError(f"{output} is a folder: name a file for the result with --output")
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("ceilings", total=1 + len(names))
        ceilings = measure_ceilings(threads)
        profiles = []
        for name in names:
            progress.update(bar, advance=1, description=name)
            profiles.append(profile_graph(bundle, name, [tokens] * rows, ceilings, threads=threads, repeats=repeats))
        progress.advance(bar)
    result = {"ceilings": asdict(ceilings), "graphs": [asdict(each) for each in profiles]}
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, json.dumps(result, indent=1) + "\n")
    typer.echo(json.dumps(result, allow_nan=False) if as_json else kernel_table(result))


@app.command()
def generation(
    output: Annotated[Path, typer.Option(help="Where the figures and the seconds of every step go (JSON).")],
    bundle: Annotated[Path, typer.Option(help="What is served.")] = Path("model/pretrained"),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    source: Annotated[int, typer.Option(min=2, help="Tokens of a source.")] = 512,
    target: Annotated[int, typer.Option(min=2, help="Tokens of an answer.")] = 64,
    rows: Annotated[int, typer.Option(min=1, help="Answers that are written at once.")] = 8,
    rounds: Annotated[int, typer.Option(min=3, help="Answers that each of them makes room for.")] = 3,
    temperature: Annotated[float, typer.Option(min=0, help="0 is greedy.")] = 0.0,
    prefill_tokens: Annotated[int, typer.Option(min=1, help="Source tokens that are encoded together.")] = 2048,
    threads: Annotated[int, typer.Option(min=0, help="Threads of an operator on a CPU; 0 is one a core.")] = 0,
) -> None:
    """Time an engine's answers: the first token, a steady state, and steps alone."""
    from dataclasses import asdict

    from deploy.benchmark.generation import GenerationLoad, measure_generation
    from deploy.bundle.replacement import write_text
    from deploy.triton.limits import EngineSettings

    output.parent.mkdir(parents=True, exist_ok=True)
    settings = EngineSettings(
        slots=rows,
        max_source_tokens=source,
        max_target_tokens=target,
        threads=threads,
        device=device,
        prefill_tokens=prefill_tokens,
        verify=False,
    )
    wanted = GenerationLoad(
        rows=rows, source_tokens=source, target_tokens=target, temperature=temperature, rounds=rounds
    )
    figures = asdict(measure_generation(bundle, settings, wanted))
    write_text(output, json.dumps(figures, indent=1) + "\n")
    del figures["steps_s"]
    typer.echo(json.dumps(figures, indent=2))
