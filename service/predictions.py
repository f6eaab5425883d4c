"""Everything the gateway has learnt to predict with, as one thing that can be kept, and begun with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Hashable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from deploy.triton.protocol import Task
from service.batching.batcher import Batcher
from service.batching.clock import Clock
from service.batching.latency import BatchTime
from service.batching.rows import RowLane
from service.batching.windows import MODEL, WindowLane
from service.state_file import StateFile

TASKS: dict[str, Hashable] = {**{str(task): task for task in Task}, MODEL: MODEL}
"""What arrivals are told apart by."""


class Predictions:
    """The models of both lanes."""

    def __init__(self, rows: RowLane, windows: WindowLane, clock: Clock, file: StateFile | None) -> None:
        """`file`: where they are kept; None keeps nothing."""
        self._batchers: dict[str, Batcher[Any]] = {"generator": rows.batcher, "qa": windows.batcher}
        self._lengths, self._clock, self._file = rows.batcher.lengths, clock, file
        self.known: set[str] = set()
        """Names of places whose models an earlier run has learnt."""

    @asynccontextmanager
    async def kept(self, every_s: float) -> AsyncIterator[None]:
        """Begin with what was kept, and keep what is learnt."""
        file = self._file
        if file is None:
            yield
            return
        found = await asyncio.to_thread(file.read)
        if found is not None:
            try:
                self.restore(*found)
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                file.distrust(error)
        keeping = asyncio.create_task(self._keep(file, every_s))
        try:
            yield
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            await asyncio.to_thread(file.write, self.state())

    def state(self) -> dict[str, Any]:
        """All of it, as JSON has it."""
        now_s = self._clock.now_s()
        return {
            "batches": {
                model: {
                    load.place.name: load.latency.state()
                    for load in batcher.loads
                    if isinstance(load.latency, BatchTime)
                }
                for model, batcher in self._batchers.items()
            },
            "steps": {load.place.name: load.steps.state() for load in self._batchers["generator"].loads},
            "forecasts": {model: batcher.forecast.state(now_s) for model, batcher in self._batchers.items()},
            "lengths": self._lengths.state(),
        }

    def restore(self, state: Mapping[str, Any], away_s: float) -> None:
        """Go on from a state that was written `away_s` ago; parts before the first damaged one are taken.

        Raises ValueError, KeyError, TypeError, IndexError or AttributeError.
        """
        for model, batcher in self._batchers.items():
            for load in batcher.loads:
                kept = state["batches"][model].get(load.place.name)
                if kept is not None and isinstance(load.latency, BatchTime):
                    load.latency.restore(kept)
            batcher.forecast.restore(state["forecasts"][model], self._clock.now_s(), away_s, TASKS)
        self._lengths.restore(state["lengths"])
        for load in self._batchers["generator"].loads:
            steps = state["steps"].get(load.place.name)
            if steps is not None:
                load.steps.restore(steps)
                self.known.add(load.place.name)

    async def _keep(self, file: StateFile, every_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            await asyncio.to_thread(file.write, self.state())
