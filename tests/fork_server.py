"""`python -m tests.fork_server SOCKET MODULE…`: a process that has imported what tests need, and forks itself.

    pytest ──a connection──▶ server ──fork──▶ keeper ──fork──▶ the process: runs the task, ends as any Python does
       ▲                                        │
       └──────── its id, then its status ───────┘

The server imports and does nothing else, so a fork of it is as fresh as a process of its own; what it does not have is
a hash seed of its own. It has one thread, which is all that a fork keeps. It ends with the process that started it.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection

import psutil


@dataclass(frozen=True, slots=True)
class Job:
    """What one process is to do."""

    pickled: bytes
    """A function and its arguments: unpickled where errors are seen."""
    environment: dict[str, str]
    outputs: tuple[str, str]
    """Files for what it prints on stdout and on stderr; one, perhaps, for both."""


@dataclass(slots=True)
class Ending:
    """The end of a process, without taking apart its two thousand modules: that takes 0.3 s."""

    status: int = 0

    def leave(self) -> None:
        """After threads have ended and what else is to be done at exit is done."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(self.status)


def main() -> None:
    """Serve; and in every process that is forked, do its job."""
    ending = Ending()
    atexit.register(ending.leave)  # the first to be registered is the last to run
    control = socket.socket(fileno=int(sys.argv[1]))
    for name in sys.argv[2:]:
        import_module(name)
    threads = psutil.Process().num_threads()
    if threads != 1:
        raise RuntimeError(f"{threads} threads run after the imports, and a fork has only one")
    gc.collect()
    gc.freeze()  # so that a collection in a fork copies no pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for keepers' statuses
    control.send(b"ready")
    job = wait_for_job(control)
    if job is not None:
        ending.status = run(job)


def wait_for_job(control: socket.socket) -> Job | None:
    """Returns in each process that is forked for a job; in the server when there will be no more, without one."""
    while True:
        _, descriptors, _, _ = socket.recv_fds(control, 1, 1)
        if not descriptors:
            return None
        if os.fork() == 0:
            control.close()
            return keep(Connection(descriptors[0]))
        os.close(descriptors[0])


def keep(client: Connection) -> Job:
    """Fork for the job that a client sends, and tell it the process' id and status; returns in that process alone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    job: Job = client.recv()
    pid = os.fork()
    if pid == 0:
        client.close()
        return job
    try:
        client.send(pid)
        threading.Thread(target=end_without, args=(client, pid), daemon=True).start()
        client.send(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    finally:
        os._exit(0)


def end_without(client: Connection, pid: int) -> None:
    """Kill a process once its client is gone, as where the tests were killed."""
    with suppress(EOFError, ConnectionError):
        client.recv()
    os.kill(pid, signal.SIGKILL)


def run(job: Job) -> int:
    """The job's exit status. In a session of its own, as a test may signal the whole of it.

    Where it dies of a signal it prints at which line.
    """
    os.setsid()
    os.environ.clear()
    os.environ.update(job.environment)
    for stream, output in enumerate(job.outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_APPEND), stream)
    faulthandler.enable()
    try:
        task, arguments = pickle.loads(job.pickled)
        task(*arguments)
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
