"""A run that is asked to end: it looks at SIGTERM and Ctrl-C between steps, and saves what it learnt first."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

from training.parallel.mesh import Mesh, speaks_for_all

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class InterruptedRun(Exception):
    """A run that saved where it was and ended early.

    Args:
        number: the signal's.
        step: steps done, and saved.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"{signal.Signals(number).name}: step {step} is saved, the same command goes on from there")
        self.number = number


class Interruption:
    """While it is open, the first signal waits to be asked for; the next one acts as it would have without it."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            self._before = {each: signal.signal(each, self._take) for each in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def agreed(self, mesh: Mesh, *, now: bool) -> int:
        """The signal that all processes end by, 0 for none.

        Several processes agree only at steps for which all of them say `now`, for each time they wait for one another.
        """
        if mesh.layout.world_size > 1 and not now:
            return 0
        return int(mesh.agreed(float(self.signal)))

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore()
        if speaks_for_all():
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: the run ends after this step; once more ends it at once\n".encode())

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def leave_group(_worker: int) -> None:
    """For processes that build batches: a signal to the run's whole group would take them from under it.

    Their parent ends them by a signal that still acts.
    """
    os.setsid()
    for each in SIGNALS:
        signal.signal(each, signal.SIG_DFL)
