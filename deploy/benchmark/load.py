"""Open-loop load over HTTP: send at the scheduled times, time every answer, keep every sample."""

from __future__ import annotations

import asyncio
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from deploy.benchmark.workload import Query


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """What was seen of one request; times in seconds, from its scheduled arrival."""

    path: str
    scheduled_s: float
    """Scheduled arrival, from the start of the run."""
    late_s: float
    """How late the generator itself was; large values mean the client, not the server, was the limit."""
    status: int
    """HTTP status; 0 where no answer came."""
    ttft_s: float | None
    """Time to the first piece of a streamed answer."""
    total_s: float
    pieces: int
    """Deltas of a streamed answer."""
    tokens: int
    """Completion tokens that the server counted."""


async def run(
    base_url: str, arrivals: np.ndarray, queries: Iterator[Query], timeout_s: float, done: Callable[[Sample], None]
) -> list[Sample]:
    """Send one query at each arrival time and wait for all answers.

    Args:
        base_url: The service, e.g. `http://127.0.0.1:8000`.
        arrivals: Seconds from the start, ascending.
        queries: Where bodies come from.
        timeout_s: After this a request counts as failed.
        done: Called with every sample as it is complete (progress).
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
    async with httpx.AsyncClient(base_url=base_url, timeout=timeout_s, limits=limits) as client:
        start = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            tasks = []
            for scheduled_s, query in zip(arrivals, queries, strict=False):
                await asyncio.sleep(max(0.0, start + scheduled_s - time.perf_counter()))
                tasks.append(group.create_task(_send(client, query, start, float(scheduled_s), done)))
        return [task.result() for task in tasks]


async def _send(
    client: httpx.AsyncClient, query: Query, start: float, scheduled_s: float, done: Callable[[Sample], None]
) -> Sample:
    due = start + scheduled_s
    late_s = time.perf_counter() - due
    status, ttft_s, pieces, tokens = 0, None, 0, 0
    try:
        async with client.stream("POST", query.path, json=query.body) as response:
            status = response.status_code
            if query.streams and status == httpx.codes.OK:
                async for line in response.aiter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    event = json.loads(line.removeprefix("data: "))
                    tokens = max(tokens, (event.get("usage") or {}).get("completion_tokens", 0))
                    if event.get("delta"):
                        pieces += 1
                        ttft_s = ttft_s or time.perf_counter() - due
            else:
                tokens = _usage(await response.aread())
    except httpx.HTTPError:
        status = 0  # Counted as a failed request in the results; the run goes on.
    sample = Sample(
        path=query.path,
        scheduled_s=scheduled_s,
        late_s=late_s,
        status=status,
        ttft_s=ttft_s,
        total_s=time.perf_counter() - due,
        pieces=pieces,
        tokens=tokens,
    )
    done(sample)
    return sample


def _usage(body: bytes) -> int:
    answer = json.loads(body)
    return (answer.get("usage") or {}).get("completion_tokens", 0)


def record(name: str, settings: dict[str, Any], samples: list[Sample]) -> dict[str, Any]:
    """The raw result of a run: settings, machine, versions and every sample."""
    return {
        "name": name,
        "settings": settings,
        "machine": {"platform": platform.platform(), "processor": processor(), "python": platform.python_version()},
        "versions": {package: version(package) for package in ("trident", "onnxruntime", "fastapi", "tritonclient")},
        "samples": [asdict(sample) for sample in samples],
    }


def processor() -> str:
    """The processor's name as the kernel tells it, with the number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines()]
    names = {key.strip(): value.strip() for key, _, value in lines}
    cores = sum(key.strip() == "processor" for key, _, _ in lines)
    return f"{names.get('model name', platform.machine())}, {cores} cores"
