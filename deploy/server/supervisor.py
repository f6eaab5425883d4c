"""Keeps a Triton server running: starts it, waits until it is ready, and starts another one when it dies.

    start ─▶ waiting ──ready──▶ watching ──dies──▶ pause (1, 2, 4 … 30 s) ─▶ waiting …
                └──fails the first time──▶ TritonFailed

Everything happens in one thread of the gateway's process.
"""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType

from deploy.server.launcher import LaunchPlan, TritonFailed, TritonProcess

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 30.0
SETTLED_S = 60.0
"""A server that lived this long is started again without a growing pause."""

READY_POLL_S = 0.1
WATCH_POLL_S = 0.5


class Supervisor:
    """One server and its successors. A context: leaving it ends the server."""

    def __init__(self, plan: LaunchPlan, *, start_timeout_s: float = 120.0) -> None:
        self.plan = plan
        self._start_timeout_s = start_timeout_s
        self._stopping = threading.Event()
        self._settled = threading.Event()
        self._failure: TritonFailed | None = None
        self._thread = threading.Thread(target=self._run, name="triton-supervisor", daemon=True)

    def __enter__(self) -> Supervisor:
        """Start; `wait_until_ready` tells how that went."""
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        """End the server. Its log stays where it failed, and goes where all was well."""
        self._stopping.set()
        self._thread.join()
        if self._failure is None:
            self.plan.discard()

    def wait_until_ready(self) -> None:
        """Block until the first server is ready. Raises TritonFailed where it ends, or takes too long."""
        self._settled.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._stopping.is_set():
            started = time.monotonic()
            failure = self._run_once()
            if failure is None:
                return
            if not self._settled.is_set():
                self._failure = failure
                self._settled.set()
                return
            if time.monotonic() - started > SETTLED_S:
                pause_s = FIRST_PAUSE_S
            log.error("%s\nAnother one is started in %g s.", failure, pause_s)
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _run_once(self) -> TritonFailed | None:
        """One server, from its start to its end; None where the end was wanted."""
        try:
            process = TritonProcess(self.plan)
        except OSError as error:
            return TritonFailed(f"Triton did not start: {error}")
        try:
            self._wait_until_ready(process)
            self._settled.set()
            self._watch(process)
        except TritonFailed as failure:
            # Requests to a model that has died never end, and a server that is asked to end waits for them.
            process.kill()
            return failure
        process.stop()
        return None

    def _wait_until_ready(self, process: TritonProcess) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while not self._stopping.is_set() and not process.is_ready():
            death = process.death(READY_POLL_S)
            if death is None and time.monotonic() > deadline:
                death = f"it was not ready after {self._start_timeout_s:g} s"
            if death is not None:
                raise self._failed("did not start", death, process)

    def _watch(self, process: TritonProcess) -> None:
        while not self._stopping.is_set():
            death = process.death(WATCH_POLL_S)
            if death is not None:
                raise self._failed("has died", death, process)

    def _failed(self, what: str, why: str, process: TritonProcess) -> TritonFailed:
        return TritonFailed(f"Triton {what}: {why}. The end of its log, {self.plan.log}:\n{process.log_end()}")
