"""What the service adds to its model: to one question, and to what many clients can get out of the machine.

    python -m tests.end_to_end.measure_overhead --output docs/results/overhead.json

One question: the same lengths through gateway and Triton, and by the same graph in this process, turn by turn.
Saturation: all requests of a trace from many clients at once, and by raw ONNX Runtime in batches sorted by length,
round by round. The clients share the cores with the service.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from deploy.benchmark.arrivals import read_trace
from deploy.benchmark.capacity import RawModel
from deploy.benchmark.load import surroundings
from deploy.benchmark.questions import SizedQuestions, sized_questions
from deploy.benchmark.replay import at_once, one_by_one
from tests.end_to_end.conftest import SHIPPED_BUNDLE, Service, start_service, stop_service

LENGTHS = (16, 64, 128, 384)
"""Tokens of single questions."""

ROWS = (4, 32)
"""Of raw ONNX Runtime's batches: two cores compute few rows at a time no slower than many. The faster one counts."""

CLIENTS = 64


@dataclass(kw_only=True, slots=True)
class Single:
    """Questions of one length, one at a time, seconds."""

    tokens: int
    served_s: list[float] = field(default_factory=list)
    raw_s: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Medians, and what lies between them."""
        served_s, raw_s = statistics.median(self.served_s), statistics.median(self.raw_s)
        return {
            "served_median_ms": 1e3 * served_s,
            "raw_median_ms": 1e3 * raw_s,
            "added_ms": 1e3 * (served_s - raw_s),
            "added_of_best_ms": 1e3 * (min(self.served_s) - min(self.raw_s)),
        }


@dataclass(kw_only=True, slots=True)
class Saturation:
    """All requests at once, a number a round."""

    requests: int
    served_per_s: list[float] = field(default_factory=list)
    raw_per_s: dict[int, list[float]] = field(default_factory=lambda: {rows: [] for rows in ROWS})
    """By rows of a batch."""

    gateway_ms: list[float] = field(default_factory=list)
    """Processor time a request, of the gateway."""

    triton_ms: list[float] = field(default_factory=list)
    """The same of Triton and its models."""

    raw_ms: list[float] = field(default_factory=list)
    client_ms: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """The ratio of rates, round by round, and processor times."""
        best = max(self.raw_per_s.values(), key=statistics.median)
        ratios = [served / raw for served, raw in zip(self.served_per_s, best, strict=True)]
        times = {name: statistics.median(getattr(self, name)) for name in TIMES}
        return {"of_raw_median": statistics.median(ratios), "of_raw_least": min(ratios), **times}


TIMES = ("gateway_ms", "triton_ms", "raw_ms", "client_ms")


class Processors:
    """Processor time of a service's parts and of this process."""

    def __init__(self, service: Service) -> None:
        self._gateway = psutil.Process(service.process.pid)
        self._triton = [service.triton(), *service.triton().children(recursive=True)]

    def used_s(self) -> np.ndarray:
        """Of gateway, Triton, this process."""
        triton_s = sum(_seconds(each) for each in self._triton)
        return np.array([_seconds(self._gateway), triton_s, time.process_time()])


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def singles(url: str, raw: RawModel, questions: SizedQuestions, rounds: int) -> list[Single]:
    """Single questions of all lengths, in turns with the graph in this process."""
    found = [Single(tokens=tokens) for tokens in LENGTHS]
    for number in range(rounds + 1):
        for each in found:
            served_s = float(asyncio.run(one_by_one(url, [questions.body(each.tokens, number)] * 2))[1])
            raw_s = raw.batch_s(np.array([each.tokens]))
            # The first of all takes memory that later ones find.
            if number:
                each.served_s.append(served_s)
                each.raw_s.append(raw_s)
    return found


def saturation(
    service: Service, raw: RawModel, questions: SizedQuestions, tokens: np.ndarray, rounds: int
) -> Saturation:
    """All requests at once, in turns with raw ONNX Runtime."""
    found, processors, bodies = Saturation(requests=len(tokens)), Processors(service), questions.bodies(tokens)
    asyncio.run(at_once(service.url, bodies[:CLIENTS], CLIENTS))
    for _ in range(rounds):
        began_s = time.process_time()
        for rows in ROWS:
            found.raw_per_s[rows].append(len(tokens) / raw.shares_s(tokens, rows).sum())
        found.raw_ms.append(1e3 * (time.process_time() - began_s) / len(tokens) / len(ROWS))
        before_s = processors.used_s()
        found.served_per_s.append(len(tokens) / asyncio.run(at_once(service.url, bodies, CLIENTS)))
        times_ms = 1e3 * (processors.used_s() - before_s) / len(tokens)
        for values, value in zip((found.gateway_ms, found.triton_ms, found.client_ms), times_ms, strict=True):
            values.append(float(value))
    return found


def lengths_of(trace: Path | None, requests: int, questions: SizedQuestions) -> np.ndarray:
    """Tokens of a trace's first requests, as long as a window holds; evenly spread ones without a trace."""
    if trace is None:
        spread = np.linspace(questions.shortest, questions.longest, requests).astype(int)
        return np.random.default_rng(0).permutation(spread)
    return questions.fitted(read_trace(trace, lengths=True, first=requests).source_tokens, questions.longest)


def measure(service: Service, tokens: np.ndarray, rounds: int) -> dict[str, Any]:
    """All of it, and what stands out."""
    raw, questions = RawModel(SHIPPED_BUNDLE), sized_questions(SHIPPED_BUNDLE)
    alone = singles(service.url, raw, questions, 30 * rounds)
    full = saturation(service, raw, questions, tokens, rounds)
    return {
        **surroundings(),
        "load_average": psutil.getloadavg(),
        "single": [{**each.summary(), **asdict(each)} for each in alone],
        "saturation": {**full.summary(), **asdict(full)},
    }


def main(given: Sequence[str] | None = None) -> None:
    """Start a service, measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--trace", type=Path, help="lengths as Azure publishes them; spread evenly without it")
    parser.add_argument("--requests", type=int, default=300, help="at once, in every round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(given)
    tokens = lengths_of(arguments.trace, arguments.requests, sized_questions(SHIPPED_BUNDLE))
    with tempfile.TemporaryDirectory() as folder:
        service = start_service(Path(folder), "--repository", f"{folder}/repository", TRIDENT_STATE__KEEP="false")
        try:
            found = measure(service, tokens, arguments.rounds)
        finally:
            stop_service(service)
    for each in (*found["single"], found["saturation"]):
        plain = {name: value for name, value in each.items() if not isinstance(value, list | dict)}
        print(json.dumps(plain, indent=1), file=sys.stderr)
    if arguments.output:
        rounded = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 5))
        arguments.output.write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
