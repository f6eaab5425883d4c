"""Worker processes that run a stage's tasks, and end when the command that started them does."""

from __future__ import annotations

import fcntl
import os
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import redirect_stderr, suppress
from copy import deepcopy
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor


class QuietExecutor(LocalPipelineExecutor):
    """datatrove's tasks in processes of ours: silent on the terminal, gone when the command that started them is.

    datatrove's own pool waits for ever where a worker was killed for memory, and leaves its manager process behind
    where the command itself was killed.
    """

    def __init__(self, *arguments: Any, lock: Path, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.lock = lock

    def run(self) -> None:
        """Run the tasks that are not completed.

        Raises what a task raised, and ValueError where a process died.
        """
        ranks = self.get_incomplete_ranks(range(self.tasks))
        if not ranks:
            return
        self.save_executor_as_json()
        if self.workers == 1:
            for rank in ranks:
                deepcopy(self).run_rank(rank)
            return
        context = get_context("forkserver")
        context.set_forkserver_preload([type(step).__module__ for step in self.pipeline])
        theirs, ours = context.Pipe(duplex=False)
        with ours, ProcessPoolExecutor(self.workers, context, _end_with_command, (self.lock, theirs)) as pool:
            waiting = [pool.submit(self.run_rank, rank) for rank in ranks]
            try:
                for done in as_completed(waiting):
                    done.result()
            except BrokenProcessPool as error:
                raise ValueError(
                    "a worker process was killed, perhaps for want of memory; try fewer workers"
                ) from error
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def run_rank(self, rank: int) -> None:
        """Run one task; its messages go to its log file alone."""
        with redirect_stderr(Nowhere()):
            self._run_for_rank(rank)


class Nowhere:
    """A stream that keeps nothing; loguru and tqdm write to it."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def _end_with_command(lock: Path, command: Connection) -> None:
    """Share the workers' lock, and end this process when the other end of the pipe is closed: the command is gone.

    A worker that went on writing would meet the run that the user starts next.
    """
    held = lock.open("w")
    fcntl.flock(held, fcntl.LOCK_SH)

    def watch() -> None:
        with suppress(EOFError):
            command.recv()
        held.close()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
