"""What `priority` attains beside `flex` where both together ask for more than there is, on a real Triton.

    python -m tests.end_to_end.measure_priority --output docs/results/priority.json

A service is saturated first, by clients that ask again as soon as they are answered; that many requests a second are
load 1. A priority request's deadline is some times what the same request takes alone, as X-Request-Timeout-Ms; flex
has its class's. The same priority requests are then sent once more without any flex.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.end_to_end.conftest import start_service, stop_service
from tests.end_to_end.measure_neighbours import PATIENT, company, quantile, text_of

CLIENTS = 48
"""Half more than the engine has slots."""

SOURCES = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
NEW_TOKENS = (8, 32, 64)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request that is sent many times."""

    path: str
    body: dict[str, Any]


@dataclass(kw_only=True, slots=True)
class Class:
    """How the requests of one class of service ended."""

    seconds: list[float] = field(default_factory=list)
    """Of those that were answered."""

    in_time: list[float] = field(default_factory=list)
    """1 or 0, a request each, in the order of their arrival."""

    refused: int = 0
    late: int = 0

    def summary(self) -> dict[str, float]:
        """What stands out; nothing of a class that was not asked for."""
        if not self.in_time:
            return {}
        return {
            "requests": len(self.in_time),
            "attained": statistics.mean(self.in_time),
            "refused": self.refused,
            "late": self.late,
            "median_s": statistics.median(self.seconds) if self.seconds else float("nan"),
            "p99_s": quantile(self.seconds, 0.99) if self.seconds else float("nan"),
            "longest_s": max(self.seconds, default=float("nan")),
        }


def asks() -> list[Ask]:
    """Prompts and texts to summarise, of every length and limit."""
    found = []
    for tokens in SOURCES:
        text = text_of(tokens)
        found += [Ask("/v1/generate", {"prompt": text, "max_new_tokens": most, "seed": 1}) for most in NEW_TOKENS]
        if tokens >= 64:
            found += [Ask("/v1/summarize", {"text": text, "max_new_tokens": most}) for most in NEW_TOKENS[1:]]
    return found


class Bench:
    """Requests to one service."""

    def __init__(self, client: httpx.AsyncClient, seed: int) -> None:
        self._client, self._asks = client, asks()
        self._random = random.Random(seed)

    async def alone_s(self, rounds: int) -> list[float]:
        """Median seconds of every request alone."""
        times: list[list[float]] = [[] for _ in self._asks]
        for _ in range(rounds):
            for ask, found in zip(self._asks, times, strict=True):
                began_s = time.perf_counter()
                response = await self._client.post(ask.path, json=ask.body, headers=PATIENT)
                assert response.status_code == 200, response.text
                found.append(time.perf_counter() - began_s)
        return [statistics.median(each) for each in times]

    async def saturated_per_s(self, seconds: float) -> float:
        """Requests a second that are answered while all clients ask for more."""
        answered = 0

        async def ask_again(_: int) -> None:
            nonlocal answered
            ask = self._random.choice(self._asks)
            response = await self._client.post(ask.path, json=ask.body, headers=PATIENT)
            assert response.status_code == 200, response.text
            answered += 1

        async with company(CLIENTS, ask_again):
            await asyncio.sleep(seconds / 4)
            before, began_s = answered, time.perf_counter()
            await asyncio.sleep(seconds)
            return (answered - before) / (time.perf_counter() - began_s)

    async def both(self, rate: float, seconds: float, deadlines_s: list[float], *, flex: bool) -> dict[str, Class]:
        """A Poisson process of both classes by halves; without `flex`, its priority requests alone."""
        classes = {"priority": Class(), "flex": Class()}
        arrivals = random.Random(7)
        async with asyncio.TaskGroup() as group:
            began_s, after_s = time.perf_counter(), 0.0
            while (after_s := after_s + arrivals.expovariate(rate)) < seconds:
                number, name = arrivals.randrange(len(self._asks)), arrivals.choice(("priority", "flex"))
                if name == "priority" or flex:
                    await asyncio.sleep(began_s + after_s - time.perf_counter())
                    deadline_s = deadlines_s[number] if name == "priority" else None
                    group.create_task(self._send(self._asks[number], name, classes[name], deadline_s))
        return classes

    async def _send(self, ask: Ask, name: str, found: Class, deadline_s: float | None) -> None:
        headers = {"X-Service-Tier": name}
        if deadline_s is not None:
            headers["X-Request-Timeout-Ms"] = str(round(1e3 * deadline_s))
        index = len(found.in_time)
        found.in_time.append(0.0)
        began_s = time.perf_counter()
        response = await self._client.post(ask.path, json=ask.body, headers=headers)
        took_s = time.perf_counter() - began_s
        if response.status_code == httpx.codes.OK:
            found.seconds.append(took_s)
            found.in_time[index] = float(deadline_s is None or took_s <= deadline_s)
        found.refused += response.status_code == httpx.codes.TOO_MANY_REQUESTS
        found.late += response.status_code == httpx.codes.GATEWAY_TIMEOUT


async def measure(url: str, given: argparse.Namespace) -> list[dict[str, Any]]:
    """Every patience, with flex and without, in turns."""
    runs = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=900, limits=limits) as client:
        bench = Bench(client, 3)
        await bench.alone_s(1)
        for number in range(given.rounds):
            alone_s = await bench.alone_s(2)
            saturated = await bench.saturated_per_s(given.seconds / 2)
            for patience in given.patience:
                deadlines_s = [max(0.05, patience * each) for each in alone_s]
                for flex in (True, False) if number % 2 else (False, True):
                    classes = await bench.both(given.load * saturated, given.seconds, deadlines_s, flex=flex)
                    runs.append(
                        {
                            "round": number,
                            "patience": patience,
                            "flex": flex,
                            "load": given.load if flex else given.load / 2,
                            "saturated_per_s": saturated,
                            "alone_median_s": statistics.median(alone_s),
                            "load_average": os.getloadavg()[0],
                            "summary": {name: each.summary() for name, each in classes.items()},
                            "classes": {name: asdict(each) for name, each in classes.items()},
                        }
                    )
                    print(json.dumps({k: v for k, v in runs[-1].items() if k != "classes"}), file=sys.stderr)
    return runs


def main() -> None:
    """Start a service of each policy, measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0, help="Of a run.")
    parser.add_argument("--load", type=float, default=1.2)
    parser.add_argument("--patience", type=float, nargs="*", default=[5.0, 15.0], help="Deadline over time alone.")
    parser.add_argument("--policies", nargs="*", default=["predictive", "dynamic"])
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": f"{platform.machine()}, {psutil.cpu_count()} cores", "policies": {}}
    for policy in given.policies:
        with tempfile.TemporaryDirectory() as folder:
            service = start_service(
                Path(folder), "--repository", f"{folder}/repository", TRIDENT_BATCHING__POLICY=policy
            )
            try:
                found["policies"][policy] = asyncio.run(measure(service.url, given))
            finally:
                stop_service(service)
    if given.output:
        rounded = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 4))
        given.output.write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
