"""Processes for tests that begin at once: forks of a server that has imported PyTorch, DeepSpeed and the rest.

Imports cost a process of its own four seconds of CPU and more, those of eight ranks half a minute on two cores. Each
fork is fresh, so no test finds what another left; where one hangs or dies, that is its own test's failure alone.
"""

from __future__ import annotations

import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from multiprocessing import Pipe, connection
from pathlib import Path
from typing import IO, Any, Self

import psutil

from tests.fork_server import Job
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (
    "deepspeed",
    "deepspeed.runtime.zero.muon.original_muon",  # has functions compiled: the compiler's modules are the most of it
    "torch.utils.tensorboard",
    "transformers",
    "deploy.cli",
    "training.engines.pipeline",
    "training.engines.zero",
    "training.train",
)
"""What takes seconds to import; nothing that starts a thread, as ONNX Runtime does."""
FINISH_S = 280
"""Less than a test's own time, so that the processes can still be asked where they hang."""
TOLD = 4_000
"""Characters of a failed process' output that are shown."""


class Fork:
    """A process that runs `task(*arguments)`, both of which must be picklable."""

    def __init__(
        self, task: Callable[..., object], arguments: tuple[Any, ...], environment: dict[str, str], *, apart: bool
    ) -> None:
        self._stdout = _new_file()
        self._stderr = _new_file() if apart else self._stdout
        self._status: int | None = None
        self.keeper, theirs = Pipe()
        with theirs:
            socket.send_fds(_server(), [b"."], [theirs.fileno()])
        outputs = (self._stdout.name, self._stderr.name)
        self.keeper.send(Job(pickle.dumps((task, arguments)), environment, outputs))
        self.pid: int = self.keeper.recv()

    @property
    def status(self) -> int | None:
        """The exit status, −n after signal n; None while it runs."""
        if self._status is None and self.keeper.poll():
            self._status = self.keeper.recv()
        return self._status

    def printed(self) -> str:
        """What it has printed so far, on stdout and, unless that goes apart, on stderr."""
        self._stdout.seek(0)
        return self._stdout.read()

    def printed_apart(self) -> str:
        """What it has printed so far on a stderr that goes apart."""
        self._stderr.seek(0)
        return self._stderr.read()

    def send_signal(self, number: int) -> None:
        """To the process, if it still runs."""
        if self.status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to it and to all that it started."""
        if self.status is not None:
            return
        with suppress(psutil.NoSuchProcess):
            started = psutil.Process(self.pid).children(recursive=True)
            self.send_signal(signal.SIGKILL)
            for each in started:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            psutil.wait_procs(started)
        connection.wait([self.keeper])


class Forks:
    """Processes of one task, and the part of `subprocess.Popen` that tests use; where one fails, the rest are killed.

    Of several, each finds its rank, their number and where to meet in its environment, as torchrun writes them.
    """

    def __init__(self, task: Callable[..., object], *arguments: Any, size: int = 1, **environment: str) -> None:
        shared = {**_environment(), **environment}
        if size > 1:
            shared |= {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        self.each = []
        for rank in range(size):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}
            self.each.append(Fork(task, arguments, shared | own, apart=False))
        self.pid = self.each[0].pid
        self.returncode: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def poll(self) -> int | None:
        """The status of the first that failed, 0 where all ended well, None while they run."""
        if self.returncode is None:
            statuses = [fork.status for fork in self.each]
            failed = next((status for status in statuses if status), None)
            if failed is not None:
                self._kill_all()
            if None not in statuses or failed is not None:
                self.returncode = failed or 0
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Until all have ended or one has failed. Raises subprocess.TimeoutExpired."""
        deadline_s = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            running = [fork.keeper for fork in self.each if fork.status is None]
            if running and not connection.wait(running, left_s):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """Wait, and return what they printed, one after the other. Raises subprocess.TimeoutExpired."""
        self.wait(timeout)
        return "".join(fork.printed() for fork in self.each), None

    def finish(self, timeout_s: float = FINISH_S) -> str:
        """Wait for a good end and return what was printed; AssertionError with it, and where it hangs, otherwise."""
        try:
            told, _ = self.communicate(timeout_s)
        except subprocess.TimeoutExpired:
            hanging = [fork for fork in self.each if fork.status is None]
            for fork in hanging:
                fork.send_signal(signal.SIGABRT)  # which makes it print where it is
                connection.wait([fork.keeper])
            raise AssertionError(f"not ended after {timeout_s} s:\n{self._about(hanging)}") from None
        failed = [fork for fork in self.each if fork.status not in (0, -signal.SIGKILL)] or self.each
        assert self.returncode == 0, self._about(failed)
        return told

    def send_signal(self, number: int) -> None:
        """To all."""
        for fork in self.each:
            fork.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to all and to what they started; harmless when they have ended."""
        self._kill_all()
        self.poll()

    def _kill_all(self) -> None:
        for fork in self.each:
            fork.kill()

    def _about(self, forks: list[Fork]) -> str:
        return "\n".join(
            f"process {self.each.index(fork)} ended with status {fork.status}:\n{fork.printed()[-TOLD:]}"
            for fork in forks
        )


def completed(task: Callable[..., object], *arguments: Any) -> subprocess.CompletedProcess[str]:
    """A task run to its end, as `subprocess.run` with captured output returns it."""
    fork = Fork(task, arguments, _environment(), apart=True)
    try:
        if not connection.wait([fork.keeper], FINISH_S):
            raise subprocess.TimeoutExpired(str(arguments), FINISH_S)
    finally:
        fork.kill()
    assert fork.status is not None
    return subprocess.CompletedProcess(arguments, fork.status, fork.printed(), fork.printed_apart())


def command(*arguments: object) -> None:
    """A task: `trident` with these arguments, as `python -m deploy` runs it."""
    from deploy.cli import main

    sys.argv = ["trident", *map(str, arguments)]
    main()


def script(*arguments: object) -> None:
    """A task: `python FILE …`, of a file of the project's."""
    sys.argv = [str(each) for each in arguments]
    runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")


def _environment() -> dict[str, str]:
    """That of the tests, for processes that share two cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def _new_file() -> IO[str]:
    return tempfile.NamedTemporaryFile(mode="r", errors="replace")


@cache
def _server() -> socket.socket:
    """The way to the one server of this process, which is started now, and ends when this process does."""
    ours, theirs = socket.socketpair()
    output = tempfile.TemporaryFile()  # noqa: SIM115 (as long as the server)
    with theirs:
        subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", str(theirs.fileno()), *IMPORTED],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # a Ctrl-C is for the tests, which then end their processes
        )
    if not ours.recv(16):
        output.seek(0)
        raise RuntimeError(f"the fork server ended while it imported:\n{output.read().decode()[-TOLD:]}")
    return ours
