"""Starts one Triton server, asks it whether it is ready, and ends it.

It listens on loopback only, loads what the repository holds and nothing later, and stops where a model does not load.
It is started by way of tether.py, so that it ends with this process, however that ends.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import psutil
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc as services

from deploy.installation import Installation

LOOPBACK = "127.0.0.1"
HEALTH_TIMEOUT_S = 2.0
STOP_TIMEOUT_S = 15.0
"""An idle server takes 4 seconds to unload its models."""

KEEPALIVE = {
    # A client that vanished in silence (its host is gone, packets are dropped) is noticed within 5 + 5 s, and its rows
    # leave the engine; by default only after two hours.
    "grpc-keepalive-time": 5000,
    "grpc-keepalive-timeout": 5000,
    "grpc-keepalive-permit-without-calls": 1,
    # The gateway pings every 5 s for the same reason. Without these the third ping of a quiet connection counts as an
    # attack ("too_many_pings"), and the connection is closed with all of its streams.
    "grpc-http2-max-pings-without-data": 0,
    "grpc-http2-min-recv-ping-interval-without-data": 1000,
    "grpc-http2-max-ping-strikes": 0,
}
"""What every Triton is started with so that both ends notice a lost peer; times in ms. The Dockerfile says the same."""

LOG_LINES = 25
TETHER = Path(__file__).with_name("tether.py")


class TritonFailed(ValueError):
    """A Triton that ended, or did not become ready; the message carries the end of its log."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LaunchPlan:
    """What to start, and where it listens."""

    installation: Installation
    repository: Path
    grpc_port: int
    metrics_port: int
    folder: Path
    """For the log and the links to backends; made by `temporary`, removed by `discard`."""

    @classmethod
    def temporary(cls, installation: Installation, repository: Path) -> LaunchPlan:
        """A plan with free ports and a folder of its own."""
        grpc_port, metrics_port = free_ports(2)
        return cls(
            installation=installation,
            repository=repository.resolve(),
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            folder=Path(tempfile.mkdtemp(prefix="trident-triton-")),
        )

    @property
    def url(self) -> str:
        """host:port of the gRPC service."""
        return f"{LOOPBACK}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        """Triton's own metrics, for Prometheus."""
        return f"http://{LOOPBACK}:{self.metrics_port}/metrics"

    @property
    def log(self) -> Path:
        """What the server printed."""
        return self.folder / "triton.log"

    def command(self, backends: Path | None, shared_memory: str) -> list[str]:
        """The server's command line."""
        options = {
            "model-repository": self.repository,
            "model-control-mode": "none",
            "exit-on-error": "true",
            "strict-readiness": "true",
            "log-verbose": 0,
            "allow-http": "false",
            "grpc-address": LOOPBACK,
            "grpc-port": self.grpc_port,
            **KEEPALIVE,
            "metrics-address": LOOPBACK,
            "metrics-port": self.metrics_port,
            "allow-gpu-metrics": str(has_gpu()).lower(),
            "backend-config": f"python,shm-region-prefix-name={shared_memory}",
        }
        if backends is not None:
            options["backend-directory"] = backends
        flags = [f"--{name}={value}" for name, value in options.items()]
        return [str(self.installation.binary), *flags, "--disable-auto-complete-config"]

    def discard(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(slots=True)
class TritonProcess:
    """One run of a server."""

    plan: LaunchPlan
    _process: subprocess.Popen[bytes] = field(init=False, repr=False)
    _log_start: int = field(init=False, default=0)
    _family: list[psutil.Process] = field(init=False, default_factory=list)
    """The server and its model processes, once it was ready."""

    def __post_init__(self) -> None:
        """Start it. Raises OSError where that is impossible."""
        installation = self.plan.installation
        run = Path(tempfile.mkdtemp(prefix="run-", dir=self.plan.folder))
        shared_memory = f"trident-{os.getpid()}-{run.name}-"
        command = self.plan.command(installation.arrange_backends(run / "backends"), shared_memory)
        path = os.pathsep.join([*map(str, installation.path), os.environ.get("PATH", os.defpath)])
        # Options of the gateway's own Python must not reach the models' Python.
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        with self.plan.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(TETHER), shared_memory, *command],
                # Stays open as long as this process lives.
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**inherited, **installation.environment, "PATH": path},
                # A group of its own: a Ctrl-C in the terminal is for the gateway, which drains first.
                start_new_session=True,
            )

    def is_ready(self) -> bool:
        """Whether the server answers that all of its models are ready."""
        ready = answers_ready(self.plan.url)
        if ready:
            self._family = self._descendants()
        return ready

    def death(self, timeout_s: float) -> str | None:
        """How the server ended, or a model process of a ready server; None if all live on after `timeout_s`.

        Triton stays ready when one of its model processes dies, and every request to that model hangs or fails.
        """
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            dead = [each.pid for each in self._family if not _lives(each)]
            return f"its process {dead[0]} ended" if dead else None
        return f"it was killed by signal {-status}" if status < 0 else f"it ended with status {status}"

    def stop(self) -> None:
        """Ask the server to end, and kill it where it does not."""
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End whatever still runs, at once."""
        family = [*self._family, *self._descendants()]
        self._process.communicate()  # closes the tether's standard input
        for each in family:
            # Only where somebody killed the tether is anything left to kill.
            with suppress(psutil.NoSuchProcess):
                each.kill()

    def _descendants(self) -> list[psutil.Process]:
        try:
            return psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def log_end(self) -> str:
        """The last lines that this run printed, without the tables of what is well."""
        with self.plan.log.open("rb") as log:
            log.seek(self._log_start)
            lines = log.read().decode(errors="replace").splitlines()
        told = [line for line in lines if line.strip() and (line[0] not in "+|" or "UNAVAILABLE" in line)]
        return "\n".join(told[-LOG_LINES:])


def answers_ready(url: str) -> bool:
    """Whether a server at host:port answers that all of its models are ready."""
    # Loopback is never reached through a proxy, whatever http_proxy says.
    with grpc.insecure_channel(url, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = services.GRPCInferenceServiceStub(channel)
        try:
            return stub.ServerReady(messages.ServerReadyRequest(), timeout=HEALTH_TIMEOUT_S).ready
        except grpc.RpcError:
            return False


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nothing listens on right now."""
    probes = [socket.create_server((LOOPBACK, 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def has_gpu() -> bool:
    """Whether the NVIDIA driver shows a device."""
    return any(Path("/dev").glob("nvidia[0-9]*"))


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
