"""Runs Triton so that nothing of it outlives the process that wanted it: `watchdog.py SHARED_MEMORY COMMAND …`.

    gateway ──stdin──▶ watchdog ──▶ tritonserver ──▶ one process a Python model
            (its end is the end of the gateway)

The kernel can end a process with its parent, but tritonserver's own children, if they are still starting, would wait
for a server that is gone. So this small process stays between. When its standard input ends, however the gateway
ended, or the server does, it ends whatever is left and removes the shared memory whose names begin with SHARED_MEMORY.

A program of its own, because running Python between fork and exec of a process with threads may hang it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def main(shared_memory: str, command: list[str]) -> None:
    """Start the command, pass SIGTERM on to it, and end as it ends."""
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    server = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        process_group=0,
        # In case this process is killed itself.
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0),
    )
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    while server.poll() is None:
        ready, _, _ = select.select([sys.stdin, woken], [], [])
        if sys.stdin in ready:
            break
        os.read(woken, 4096)
    end_family(server)
    for region in Path("/dev/shm").glob(f"{shared_memory}*"):
        region.unlink(missing_ok=True)
    if server.returncode < 0:
        os.kill(os.getpid(), -server.returncode)
    sys.exit(server.returncode)


def end_family(server: subprocess.Popen[bytes]) -> None:
    """Kill the server's process group, and wait until all of it is gone."""
    server.kill()
    server.wait()
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    # Orphans of the server are this process's children now: it is their reaper.
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-server.pid, 0)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
