"""Measure how much communication of sequence-block parallelism is left exposed, with overlap off and on.

    python -m training.parallel.overlap --ranks 2 --delay-ms 5 --output docs/results/overlap.json
    python -m training.parallel.overlap --table docs/results/overlap.json --page docs/sequence-parallelism.md

Processes of this machine compute training steps of a small network — every objective's loss, and the backward pass —
over a link that is slowed on purpose (slow_link.py). Off: every exchange is waited for where it starts. On: a batch's
rows take turns. The exposed share is the time that a process stood waiting for transfers, of the step's time. Both
ways alternate, round by round, in the same processes.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from operator import itemgetter
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.distributed as dist
import torch.multiprocessing
import typer

from model.configuration import HybridConfig
from model.network import HybridModel
from training.config import ObjectivesSection
from training.data.batches import Batch
from training.parallel.sequence import TURNS, SequenceParallel, apply_sequence_parallel
from training.parallel.slow_link import SlowLink, Slowness

MODEL: dict[str, Any] = {
    "d_model": 128,
    "num_heads": 4,
    "encoder_layers": 6,
    "encoder_ffn": 512,
    "hybrid_units": 3,
    "decoder_layers": 4,
    "decoder_ffn": 256,
    "pointer_layers": 2,
    "recurrent_block": 64,
    "recurrent_halo": 16,
    "vocab_size": 8_000,
    "dropout": 0.0,
}
"""The student's depth, narrow enough for a CPU."""
BEGIN, END = "<!-- overlap: generated -->", "<!-- end -->"


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One comparison."""

    ranks: int
    turns: int
    """Parts of a batch that take turns with overlap on."""
    delay_ms: float
    megabytes_per_s: float
    """0: as fast as the machine."""
    rows: int
    source_tokens: int
    target_tokens: int
    rounds: int

    @property
    def slowness(self) -> Slowness:
        """In SI units."""
        speed = self.megabytes_per_s * 1e6 or float("inf")
        return Slowness(delay_s=self.delay_ms / 1e3, bytes_per_s=speed)


def measure(setting: Setting) -> dict[str, Any]:
    """Start the processes, and gather their samples: for each round and way, every rank's figures."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_process, (folder, setting), nprocs=setting.ranks)
        ranks = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(setting.ranks)]
    samples = [
        {"overlap": way, "ranks": [rank[index] for rank in ranks]}
        for index, way in enumerate([False, True] * setting.rounds)
    ]
    return {"setting": asdict(setting), "samples": samples}


def _process(rank: int, folder: str, setting: Setting) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=setting.ranks)
    batch = made_batch(setting)
    own = batch._replace(source_BS=batch.source_BS.chunk(setting.ranks, dim=1)[rank])
    ways, links = [], []
    for turns in (1, setting.turns):
        torch.manual_seed(0)
        model = HybridModel(HybridConfig.from_preset("student", **MODEL))
        link = SlowLink(None, setting.slowness, blocking=turns == 1)
        ways.append(apply_sequence_parallel(model, None, turns=turns, link=link))
        links.append(link)
    for way, link in zip(ways, links, strict=True):
        _step(way, link, own)
    samples = [_step(way, link, own) for _ in range(setting.rounds) for way, link in zip(ways, links, strict=True)]
    (Path(folder) / f"{rank}.json").write_text(json.dumps(samples))
    for link in links:
        link.close()
    dist.destroy_process_group()


def _step(way: SequenceParallel, link: SlowLink, batch: Batch) -> dict[str, float]:
    way.model.zero_grad()
    link.reset()
    dist.barrier()
    begin_s = time.perf_counter()
    loss = way.losses(batch).weighted(ObjectivesSection())
    loss.backward()
    return {
        "step_s": time.perf_counter() - begin_s,
        "waited_s": link.waited_s,
        "waited_for_ranks_s": link.waited_for_ranks_s,
        "transfers": link.transfers,
        "megabytes": link.bytes / 1e6,
        "loss": float(loss.detach()),
    }


def made_batch(setting: Setting) -> Batch:
    """Random rows without padding: half to continue, a quarter to answer, a quarter to summarise."""
    chance = torch.Generator().manual_seed(0)
    rows, width, target = setting.rows, setting.source_tokens, setting.target_tokens

    def tokens(*shape: int) -> torch.Tensor:
        return torch.randint(16, MODEL["vocab_size"], shape, generator=chance)

    written, asked = rows // 2, rows // 4
    return Batch(
        source_BS=tokens(rows, width),
        lengths_B=torch.full((rows,), width),
        route_B=torch.arange(rows) % 3,
        masked_PM=torch.rand(written, width, generator=chance).topk(width // 4).indices,
        masked_labels_PM=tokens(written, width // 4),
        continuation_GT=tokens(written, target),
        context_Q2=torch.tensor([[8, width]] * asked),
        answer_Q2=torch.tensor([[40, 44]] * asked),
        summary_UT=tokens(rows - written - asked, target),
        tokens=rows * width,
    )


def per_round(run: dict[str, Any], value: Callable[[dict[str, float]], float], *, overlap: bool) -> list[float]:
    """A figure of each round of one way, mean over ranks."""
    return [
        statistics.mean(value(rank) for rank in sample["ranks"])
        for sample in run["samples"]
        if sample["overlap"] is overlap
    ]


def exposed(rank: dict[str, float]) -> float:
    """The share of a step's time that a process stood waiting for transfers."""
    return rank["waited_s"] / rank["step_s"]


def exposed_to_link(rank: dict[str, float]) -> float:
    """Of it, the part after all processes had handed over: what a faster link would have saved."""
    return (rank["waited_s"] - rank["waited_for_ranks_s"]) / rank["step_s"]


def table(results: dict[str, Any]) -> str:
    """Markdown, one line a setting."""
    lines = [
        "| processes | link | rows | turns | exposed, off | exposed, on | on / off | to the link alone | step |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for run in results["runs"]:
        setting = run["setting"]
        off, on = (per_round(run, exposed, overlap=way) for way in (False, True))
        link = [statistics.median(per_round(run, exposed_to_link, overlap=way)) for way in (False, True)]
        steps = [statistics.median(per_round(run, itemgetter("step_s"), overlap=way)) for way in (False, True)]
        ratio = statistics.median(on) / statistics.median(off)
        lines.append(
            f"| {setting['ranks']} | {_link(setting)} | {setting['rows']} | {setting['turns']} | {_range(off)} | "
            f"{_range(on)} | {ratio:.2f} | {link[0]:.0%} → {link[1]:.0%}, {link[1] / link[0]:.2f} | "
            f"{steps[0]:.1f} → {steps[1]:.1f} s |"
        )
    return "\n".join(lines)


def document(path: Path, results: dict[str, Any]) -> None:
    """Put the table in place of the one that stands between the marks of a page."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", encoding="utf-8")


def _link(setting: dict[str, Any]) -> str:
    parts = [f"{setting['delay_ms']:g} ms"] * bool(setting["delay_ms"])
    parts += [f"{setting['megabytes_per_s']:g} MB/s"] * bool(setting["megabytes_per_s"])
    return ", ".join(parts) or "not slowed"


def _range(values: list[float]) -> str:
    return f"{statistics.median(values):.0%} ({min(values):.0%} – {max(values):.0%})"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "backend": "gloo over loopback, 1 thread a process",
    }


def main(
    output: Annotated[Path | None, typer.Option(help="Add the samples to this file.")] = None,
    ranks: Annotated[int, typer.Option(help="Processes that share every row.")] = 2,
    turns: Annotated[int, typer.Option(help="Parts of a batch that take turns.")] = TURNS,
    delay_ms: Annotated[float, typer.Option(help="What every transfer takes.")] = 5.0,
    megabytes_per_s: Annotated[float, typer.Option(help="Bandwidth of a rank; 0: not limited.")] = 0.0,
    rows: int = 8,
    source_tokens: int = 512,
    target_tokens: int = 64,
    rounds: Annotated[int, typer.Option(help="Steps of either way, after one that warms up.")] = 7,
    table_of: Annotated[
        Path | None, typer.Option("--table", help="Print this file's table, and measure nothing.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="With --table: put it into this page.")] = None,
) -> None:
    """Measure one setting, or print what was measured."""
    if table_of is not None:
        results = json.loads(table_of.read_text(encoding="utf-8"))
        if page is not None:
            document(page, results)
        typer.echo(table(results))
        return
    setting = Setting(
        ranks=ranks,
        turns=turns,
        delay_ms=delay_ms,
        megabytes_per_s=megabytes_per_s,
        rows=rows,
        source_tokens=source_tokens,
        target_tokens=target_tokens,
        rounds=rounds,
    )
    results = {"machine": machine(), "model": MODEL, "runs": []}
    if output is not None and output.exists():
        results = json.loads(output.read_text(encoding="utf-8"))
    results["runs"].append(measure(setting))
    if output is not None:
        output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    typer.echo(table(results))


if __name__ == "__main__":
    typer.run(main)
