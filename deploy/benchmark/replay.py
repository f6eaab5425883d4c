"""Requests to a live server over real sockets: at the times of a schedule, one by one, or as fast as it answers.

aiohttp, because the generator shares the cores with what it measures: see docs/decisions/0008.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import numpy as np

DEADLINE_HEADER = "X-Request-Timeout-Ms"
OK, TOO_MANY_REQUESTS, SERVICE_UNAVAILABLE, GATEWAY_TIMEOUT = 200, 429, 503, 504
"""503 is how servers without a word for it refuse what is too much."""

IDLE_S = 1.0
"""How long a connection is kept for the next request: less than servers keep theirs (uvicorn five seconds), which would
otherwise close one just when a request goes out over it."""

GRACE_S = 30.0
"""How long after its deadline an answer is still waited for, to know how late it is."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Schedule:
    """Requests in the order of their arrival."""

    arrivals_s: np.ndarray
    """FP64 [R], from 0 on."""

    patience_s: np.ndarray
    """FP64 [R]: from arrival to deadline. The server hears it in X-Request-Timeout-Ms."""

    bodies: Sequence[bytes]
    path: str = "/v1/qa"


@dataclass(kw_only=True, slots=True, eq=False)
class Answers:
    """What became of a schedule's requests."""

    schedule: Schedule
    status: np.ndarray
    """INT [R]; 0 where no answer came."""

    seconds: np.ndarray
    """FP64 [R]: from when a request was due to be sent to the end of its answer."""

    held_up_s: np.ndarray
    """FP64 [R]: by how much the generator itself was late; where that is much, the client was the limit."""

    @property
    def in_time(self) -> np.ndarray:
        """BOOL [R]: answered by the deadline."""
        in_time: np.ndarray = (self.status == OK) & (self.seconds <= self.schedule.patience_s)
        return in_time

    @property
    def late(self) -> np.ndarray:
        """BOOL [R]: answered behind the deadline, or given up at it."""
        late: np.ndarray = ((self.status == OK) & ~self.in_time) | (self.status == GATEWAY_TIMEOUT)
        return late

    @property
    def rejected(self) -> np.ndarray:
        """BOOL [R]: refused by the server."""
        rejected: np.ndarray = (self.status == TOO_MANY_REQUESTS) | (self.status == SERVICE_UNAVAILABLE)
        return rejected

    @property
    def failed(self) -> np.ndarray:
        """BOOL [R]: everything else."""
        return ~(self.in_time | self.late | self.rejected)

    def figures(self, load: float) -> dict[str, Any]:
        """Shares of all requests, goodput also as a share of load 1.0, latency of what was answered, every sample."""
        answered_s = self.seconds[self.status == OK]
        came = np.isfinite(self.seconds)
        ends_s = float((self.schedule.arrivals_s + np.where(came, self.seconds, 0)).max())
        attained = float(self.in_time.mean())
        return {
            "load": load,
            "attained": attained,
            "goodput": attained * load,
            "goodput_per_s": float(self.in_time.sum()) / ends_s,
            "answered_per_s": len(answered_s) / ends_s,
            "rejected": float(self.rejected.mean()),
            "late": float(self.late.mean()),
            "failed": float(self.failed.mean()),
            "latency_ms_p50": _percentile_ms(answered_s, 50),
            "latency_ms_p99": _percentile_ms(answered_s, 99),
            "held_up_ms_p99": _percentile_ms(self.held_up_s, 99),
            "status": self.status.tolist(),
            "ms": [round(1e3 * each, 1) if np.isfinite(each) else None for each in self.seconds.tolist()],
        }


async def replay(url: str, schedule: Schedule, done: Callable[[], None] = lambda: None) -> Answers:
    """Send every request when it is due, whatever has become of those before it, and wait for all answers.

    Args:
        url: The server, e.g. `http://127.0.0.1:8000`.
        schedule: What is sent, and when.
        done: Called with every answer (progress).
    """
    count = len(schedule.bodies)
    answers = Answers(
        schedule=schedule, status=np.zeros(count, int), seconds=np.full(count, np.inf), held_up_s=np.zeros(count)
    )
    async with _session() as session:
        start_s = time.perf_counter()

        async def send(index: int) -> None:
            due_s, patience_s = start_s + schedule.arrivals_s[index], float(schedule.patience_s[index])
            answers.held_up_s[index] = time.perf_counter() - due_s
            headers = {DEADLINE_HEADER: str(max(1, int(1e3 * patience_s)))}
            body, limit_s = schedule.bodies[index], patience_s + GRACE_S
            answers.status[index] = await _post(session, url + schedule.path, body, headers, limit_s)
            answers.seconds[index] = time.perf_counter() - due_s
            done()

        async with asyncio.TaskGroup() as group:
            for index, arrival_s in enumerate(schedule.arrivals_s.tolist()):
                await asyncio.sleep(max(0.0, start_s + arrival_s - time.perf_counter()))
                group.create_task(send(index))
    return answers


async def one_by_one(url: str, bodies: Sequence[bytes], path: str = "/v1/qa") -> np.ndarray:
    """Seconds of each request where the next is sent when the one before is answered: FP64 [R].

    Raises ValueError where one is not answered.
    """
    seconds = np.empty(len(bodies))
    async with _session() as session:
        for index, body in enumerate(bodies):
            began_s = time.perf_counter()
            await _answered(session, url + path, body)
            seconds[index] = time.perf_counter() - began_s
    return seconds


async def at_once(url: str, bodies: Sequence[bytes], clients: int, path: str = "/v1/qa") -> float:
    """Seconds until all requests are answered, where so many clients each send their next as soon as they can.

    Raises ValueError where one is not answered.
    """
    left = iter(bodies)
    async with _session() as session:

        async def client() -> None:
            for body in left:
                await _answered(session, url + path, body)

        began_s = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(client())
        except* ValueError as failed:
            raise failed.exceptions[0] from None
        return time.perf_counter() - began_s


def _session() -> aiohttp.ClientSession:
    """As many connections as there are requests in flight, kept for the next ones."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_S),
        headers={"Content-Type": "application/json"},
        timeout=aiohttp.ClientTimeout(total=None),
        # The service is a neighbour: a proxy for the outer world does not know the way to it.
        trust_env=False,
    )


async def _post(session: aiohttp.ClientSession, url: str, body: bytes, headers: dict[str, str], limit_s: float) -> int:
    """The status of an answer that has come whole; 0 where none did within the limit."""
    try:
        async with asyncio.timeout(limit_s), session.post(url, data=body, headers=headers) as response:
            await response.read()
            return response.status
    except (aiohttp.ClientError, TimeoutError):
        return 0


async def _answered(session: aiohttp.ClientSession, url: str, body: bytes) -> None:
    async with session.post(url, data=body) as response:
        text = await response.text()
        if response.status != OK:
            raise ValueError(f"{url} answers {response.status}: {text[:300]}")


def _percentile_ms(seconds: np.ndarray, percent: float) -> float | None:
    return float(np.percentile(seconds, percent) * 1e3) if seconds.size else None
