"""Many connections that take more than they should, and what the gateway makes of them.

`python -m tests.service.api.greedy BUNDLE` measures a thousand of each kind; with the tests' nano bundle, whose engine
takes next to nothing of the process, it wrote docs/results/greedy-connections.jsonl.
"""

from __future__ import annotations

import json
import resource
import selectors
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import psutil

from tests.service.api.running_gateway import RunningGateway, running_gateway

GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
LARGE = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000000\r\n\r\n"
OTHERS = 10
OTHER_TIMEOUT_S = 60
SMALL_SEGMENT = 536
"""Loopback's segments of 64 KB would let the kernel buffer megabytes for each connection."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What a greedy connection does."""

    first: bytes = b""
    endless: bytes = b""
    """Sent again and again, as fast as it is taken."""

    reads: bool = True


KINDS = {
    "stalled head": Kind(first=GET[:-10]),
    "stalled body": Kind(first=POST + b" " * 50_000),
    "endless headers": Kind(first=GET[:-2], endless=b"X: y\r\n" * 1000),
    "endless header line": Kind(first=GET[:-2] + b"X: ", endless=b"y" * 10_000),
    "endless pipeline": Kind(endless=GET * 500),
    "pipeline that is not read": Kind(endless=GET * 500, reads=False),
    "never reading": Kind(endless=LARGE * 10, reads=False),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What one kind cost."""

    kind: str
    connections: int
    idle_rss_mb: float
    peak_rss_mb: float
    other_s: list[float]
    """Seconds that each of the others' requests took, all answered 200."""

    sent_mb: float
    ended: int
    """Connections that the gateway has ended meanwhile."""


class Crowd(threading.Thread):
    """Connections of one kind."""

    def __init__(self, gateway: RunningGateway, kind: Kind, count: int) -> None:
        super().__init__(daemon=True)
        url = httpx.URL(gateway.url)
        self._address = (url.host, url.port or 0)
        self._kind, self._count = kind, count
        self.all_sent, self.stopped = threading.Event(), threading.Event()
        self.sent = self.ended = 0

    def run(self) -> None:
        """Connect, and go on until told to stop."""
        with selectors.DefaultSelector() as selector:
            for _ in range(self._count):
                self._begin(selector)
            self.all_sent.set()
            while not self.stopped.is_set():
                for key, ready in selector.select(timeout=0.1):
                    if not self._serve(key.fileobj, ready):  # type: ignore[arg-type]
                        selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                        self.ended += 1
            for key in list(selector.get_map().values()):
                key.fileobj.close()  # type: ignore[union-attr]

    def _begin(self, selector: selectors.BaseSelector) -> None:
        connection = socket.socket()
        if not self._kind.reads:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SMALL_SEGMENT)
        connection.connect(self._address)
        connection.sendall(self._kind.first)
        connection.setblocking(False)
        # One that never reads still hears of a reset when it sends.
        wanted = selectors.EVENT_READ if self._kind.reads else 0
        selector.register(connection, wanted | (selectors.EVENT_WRITE if self._kind.endless else 0))

    def _serve(self, connection: socket.socket, ready: int) -> bool:
        try:
            if ready & selectors.EVENT_READ and not connection.recv(65536):
                return False
            if ready & selectors.EVENT_WRITE:
                self.sent += connection.send(self._kind.endless)
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True


@contextmanager
def watched(process: psutil.Process) -> Iterator[list[int]]:
    """Resident bytes, sampled."""
    samples, over = [process.memory_info().rss], threading.Event()

    def sample() -> None:
        while not over.wait(0.05):
            samples.append(process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    yield samples
    over.set()
    thread.join()


def measure(gateway: RunningGateway, name: str, count: int, hold_s: float = 1.0) -> Finding:
    """Have so many connections of a kind, and others' requests beside them."""
    crowd = Crowd(gateway, KINDS[name], count)
    with watched(psutil.Process(gateway.process.pid)) as samples:
        crowd.start()
        assert crowd.all_sent.wait(120), f"{count} connections could not be made"
        others = [_other(gateway) for _ in range(OTHERS)]
        crowd.stopped.wait(hold_s)
        crowd.stopped.set()
        crowd.join(30)
    return Finding(
        kind=name,
        connections=count,
        idle_rss_mb=round(samples[0] / 1e6, 1),
        peak_rss_mb=round(max(samples) / 1e6, 1),
        other_s=others,
        sent_mb=round(crowd.sent / 1e6, 1),
        ended=crowd.ended,
    )


def _other(gateway: RunningGateway) -> float:
    began = time.monotonic()
    body = {"prompt": "a", "max_new_tokens": 1}
    response = httpx.post(f"{gateway.url}/v1/generate", json=body, timeout=OTHER_TIMEOUT_S)
    assert response.status_code == 200, response.text
    return round(time.monotonic() - began, 3)


def allow_descriptors(count: int) -> bool:
    """Have so many file descriptors, if this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count <= hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    return count <= max(soft, hard)


def main() -> None:
    """Print what a thousand connections of every kind cost."""
    assert allow_descriptors(2000), "needs 2,000 file descriptors: raise the limit (ulimit -n)"
    with tempfile.TemporaryDirectory() as folder:
        for name in KINDS:
            with running_gateway(Path(sys.argv[1]), Path(folder)) as gateway:
                print(json.dumps(asdict(measure(gateway, name, 1000, hold_s=5.0))), flush=True)


if __name__ == "__main__":
    main()
