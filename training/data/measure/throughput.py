"""Time and memory of stages 1 and 3 on a given amount of text, all processes together."""

from __future__ import annotations

import bz2
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from training.data.measure.domains import domain_set
from training.data.readers import read_records

PATTERNS = (
    "wikipedia_en/wiki_en_0[0-7].jsonl.bz2",
    "wikipedia_zh/*.jsonl.bz2",
    "books_en/books_en_02.jsonl.bz2",
    "openstax_en/*.jsonl.bz2",
)
SHARES = (0.6, 0.2, 0.12, 0.08)
"""Part of the bytes that each pattern's documents fill, in files of at most a sixth of all."""
SAMPLE_S = 0.1


def measure(
    corpora: Annotated[Path, typer.Argument(help="Folder of the real corpora.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON file of results.")],
    megabytes: Annotated[int, typer.Option(help="Text to process, millions of UTF-8 bytes.", min=1)] = 100,
    workers: Annotated[int, typer.Option(help="Tasks at once.", min=1)] = 2,
) -> None:
    """Run `trident data filter` and `select` as a user would, and watch them."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        written = write_input(corpora, root / "raw", megabytes * 1_000_000)
        seeds = domain_set(corpora, "medical", "test", seeds=50, inside=0, outside=0).seeds
        (root / "seeds.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in seeds), encoding="utf-8"
        )
        filtered, selected = root / "filtered", root / "selected"
        options = ["--workers", str(workers), "--json"]
        stages = {
            "filter": watch(["filter", str(root / "raw"), "--output", str(filtered), *options]),
            "select": watch(
                [
                    "select",
                    str(filtered / "corpora"),
                    "--seeds",
                    str(root / "seeds.jsonl"),
                    "--output",
                    str(selected),
                    *options,
                ]
            ),
        }
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "workers": workers,
        "text_bytes": written,
        "seconds": sum(stage["seconds"] for stage in stages.values()),
        "cpu_seconds": sum(stage["cpu_seconds"] for stage in stages.values()),
        "peak_resident_bytes": max(stage["peak_resident_bytes"] for stage in stages.values()),
        "stages": stages,
    }
    output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    typer.echo(
        f"{output}: {written / 1e6:.0f} MB in {result['seconds']:.0f} s ({result['cpu_seconds']:.0f} s of CPU), "
        f"at most {result['peak_resident_bytes'] / 1e9:.2f} GB"
    )


def write_input(corpora: Path, folder: Path, size: int) -> int:
    """Files of real documents whose texts have about `size` bytes; returns how many."""
    total = 0
    for pattern, share in zip(PATTERNS, SHARES, strict=True):
        wanted, part, source = size * share, 0, Path(pattern).parent
        documents = (record for path in sorted(corpora.glob(pattern)) for record in read_records(path, "text"))
        while wanted > 0:
            room = min(wanted, size / 6)
            (folder / source).mkdir(parents=True, exist_ok=True)
            with bz2.open(folder / source / f"{source.name}_{part:02d}.jsonl.bz2", "wt", encoding="utf-8") as file:
                while room > 0 and (record := next(documents, None)):
                    length = len(record["text"].encode())
                    room, wanted, total = room - length, wanted - length, total + length
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
                if room > 0:
                    raise ValueError(f"{corpora / pattern} holds too little text for {size:,} bytes")
            part += 1
    return total


def watch(arguments: list[str]) -> dict[str, Any]:
    """Run a data command; its seconds, its CPU seconds, the peak of all its processes' memory, and what it told."""
    import psutil

    began_s, used_before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "deploy", "data", *arguments]
    peaks = {"resident": 0, "proportional": 0}
    cpu_s: dict[int, float] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        over = threading.Event()

        def sample() -> None:
            root = psutil.Process(process.pid)
            while not over.wait(SAMPLE_S):
                resident = proportional = 0
                try:
                    for member in (root, *root.children(recursive=True)):
                        memory = member.memory_full_info()
                        resident, proportional = resident + memory.rss, proportional + memory.pss
                        used = member.cpu_times()
                        cpu_s[member.pid] = used.user + used.system
                except psutil.Error:
                    continue
                peaks["resident"] = max(peaks["resident"], resident)
                peaks["proportional"] = max(peaks["proportional"], proportional)

        sampler = threading.Thread(target=sample)
        sampler.start()
        told, _ = process.communicate()
        over.set()
        sampler.join()
    if process.returncode:
        raise ValueError(f"{' '.join(command)} failed with status {process.returncode}")
    used_after = resource.getrusage(resource.RUSAGE_CHILDREN)
    counted = used_after.ru_utime + used_after.ru_stime - used_before.ru_utime - used_before.ru_stime
    return {
        "seconds": time.perf_counter() - began_s,
        "cpu_seconds": max(counted, sum(cpu_s.values())),
        "peak_resident_bytes": peaks["resident"],
        "peak_proportional_bytes": peaks["proportional"],
        "load_average": os.getloadavg()[0],
        "told": {key: value for key, value in json.loads(told).items() if key != "corpora"},
    }


if __name__ == "__main__":
    typer.run(measure)
