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
    error: str | None = None
    """What spoilt an answer whose status says nothing of it: the code of the error that ended a stream, `truncated` for
    a stream without its end, `connection`, or `not JSON`."""


CONNECT_TIMEOUT_S = 5.0


def check_answers(base_url: str) -> None:
    """Raises ValueError, saying why and what to do, where no HTTP server answers at a URL."""
    try:
        # Whatever the answer is: the load tells how requests fare.
        httpx.get(f"{base_url}/health/live", timeout=CONNECT_TIMEOUT_S)
    except httpx.ReadTimeout:
        return  # busy, and there
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        raise ValueError(f"{base_url!r} is no address of a service: write it as http://127.0.0.1:8000") from None
    except httpx.HTTPError as error:
        raise ValueError(
            f"nothing answers at {base_url}: {_reason(error)}; start it with `make serve`, or name another with --url"
        ) from None


def _reason(error: BaseException) -> str:
    """The system's own word where there is one: "connection refused", not "[Errno 111] Connection refused"."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return str(error) or type(error).__name__


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


@dataclass(slots=True)
class _Seen:
    """What has been seen of one answer so far."""

    status: int = 0
    ttft_s: float | None = None
    pieces: int = 0
    tokens: int = 0
    error: str | None = None


async def _send(
    client: httpx.AsyncClient, query: Query, start: float, scheduled_s: float, done: Callable[[Sample], None]
) -> Sample:
    due = start + scheduled_s
    late_s = time.perf_counter() - due
    seen = _Seen()
    try:
        async with client.stream("POST", query.path, json=query.body) as response:
            seen.status = response.status_code
            if seen.status != httpx.codes.OK:
                await response.aread()
            elif query.streams:
                await _read_stream(response, due, seen)
            else:
                seen.tokens = _usage(json.loads(await response.aread()))
    # Either is counted as a failed request in the results; the run goes on.
    except httpx.HTTPError:
        seen.status, seen.error = 0, "connection"
    except ValueError:
        seen.error = "not JSON"
    sample = Sample(
        path=query.path,
        scheduled_s=scheduled_s,
        late_s=late_s,
        status=seen.status,
        ttft_s=seen.ttft_s,
        total_s=time.perf_counter() - due,
        pieces=seen.pieces,
        tokens=seen.tokens,
        error=seen.error,
    )
    done(sample)
    return sample


async def _read_stream(response: httpx.Response, due: float, seen: _Seen) -> None:
    """The status was sent before the text: whether the answer is whole, only its end tells."""
    whole = False
    async for line in response.aiter_lines():
        if not line.startswith("data: "):
            continue
        if line == "data: [DONE]":
            whole = True
            continue
        event = json.loads(line.removeprefix("data: "))
        if event.get("error"):
            seen.error = str(event["error"].get("code"))
        seen.tokens = max(seen.tokens, _usage(event))
        if event.get("delta"):
            seen.pieces += 1
            seen.ttft_s = seen.ttft_s or time.perf_counter() - due
    if not whole:
        seen.error = seen.error or "truncated"


def _usage(answer: dict[str, Any]) -> int:
    return (answer.get("usage") or {}).get("completion_tokens", 0)


def record(name: str, settings: dict[str, Any], samples: list[Sample]) -> dict[str, Any]:
    """The raw result of a run: settings, machine, versions and every sample."""
    return {
        "name": name,
        "settings": settings,
        **surroundings(),
        "samples": [asdict(sample) for sample in samples],
    }


def surroundings() -> dict[str, Any]:
    """Machine and versions, for raw results."""
    return {
        "machine": {"platform": platform.platform(), "processor": processor(), "python": platform.python_version()},
        "versions": {package: version(package) for package in ("trident", "onnxruntime", "fastapi", "tritonclient")},
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
