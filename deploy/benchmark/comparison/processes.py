"""Starts a server, waits until it answers a question, and ends it with all that it started."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from deploy.server.installation import ROOT

POLL_S = 0.1
ANSWER_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
WORKERS_TIMEOUT_S = 2.0
LOG_LINES = 20

QUESTION = {
    "question": "Who built the lighthouse?",
    "context": "The lighthouse was built in 1871 by Elias Berg, a mason from the village below.",
}


class PeerFailed(ValueError):
    """A server that ended, or did not answer in time; the message carries the end of its log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Program:
    """A server to start."""

    name: str
    command: Sequence[str]
    variables: Mapping[str, str]
    """Set in its environment, beside what is inherited."""

    port: int
    log: Path

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"


@dataclass(slots=True)
class Running:
    """A server that answers."""

    program: Program
    process: psutil.Process
    client: httpx.Client

    def resident_bytes(self) -> int:
        """Memory of the server and all processes below it; what they share counts once a process."""
        total = 0
        for each in [self.process, *self.process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += each.memory_info().rss
        return total

    def ask(self, body: Mapping[str, str] = QUESTION) -> dict[str, Any]:
        """The answer to a question. Raises httpx.HTTPError where there is none."""
        response = self.client.post("/v1/qa", json=dict(body))
        return response.raise_for_status().json()


@contextmanager
def running(program: Program, timeout_s: float) -> Iterator[Running]:
    """A server, from its first answer to the end of the context. Raises PeerFailed where it does not answer."""
    program.log.parent.mkdir(parents=True, exist_ok=True)
    with program.log.open("wb") as log:
        child = subprocess.Popen(
            list(program.command),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **program.variables},
            # A Ctrl-C is for whoever measures, who then ends the server.
            start_new_session=True,
        )
    process = psutil.Process(child.pid)
    try:
        # The server is a neighbour: a proxy for the outer world does not know the way to it.
        with httpx.Client(base_url=program.url, timeout=ANSWER_TIMEOUT_S, trust_env=False) as client:
            server = Running(program, process, client)
            _wait_until_it_answers(server, child, timeout_s)
            yield server
    finally:
        _end(process, child)


def _wait_until_it_answers(server: Running, child: subprocess.Popen[bytes], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while True:
        with suppress(httpx.HTTPError):
            server.ask()
            return
        if child.poll() is not None:
            raise _failed(server.program, f"ended with status {child.returncode}")
        if time.monotonic() > deadline_s:
            raise _failed(server.program, f"did not answer within {timeout_s:g} s")
        time.sleep(POLL_S)


def _failed(program: Program, why: str) -> PeerFailed:
    lines = program.log.read_text(encoding="utf-8", errors="replace").splitlines()[-LOG_LINES:]
    return PeerFailed(f"{program.name} {why}. The end of its log, {program.log}:\n" + "\n".join(lines))


def _end(process: psutil.Process, child: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and kill what is left of it: workers have been started in sessions of their own."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = process.children(recursive=True)
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(STOP_TIMEOUT_S)
    _, left = psutil.wait_procs(family, timeout=0 if child.poll() is None else WORKERS_TIMEOUT_S)
    for each in left:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    child.kill()
    child.wait()
    psutil.wait_procs(left, timeout=WORKERS_TIMEOUT_S)
