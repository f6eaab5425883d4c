"""The places that serve one bundle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from service.errors import Unavailable
from service.inference.place import Place, Standing
from service.inference.protocol import EngineCapacity, ServerInfo


class Fleet:
    """All of them, and whether anybody can be asked."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = tuple(places)
        self._listeners: list[Callable[[], None]] = []
        for place in self.places:
            place.on_change = self._tell

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call back whenever a place's standing changes."""
        self._listeners.append(listener)

    @property
    def ready(self) -> bool:
        """Whether some place can be asked."""
        return any(place.usable for place in self.places)

    @property
    def reason(self) -> str | None:
        """Why none can; None where one can."""
        return None if self.ready else "; ".join(place.reason or "" for place in self.places)

    @property
    def hopeless(self) -> bool:
        """Whether every place was found to be down: what waits would wait in vain."""
        return all(place.standing is Standing.DOWN for place in self.places)

    @property
    def server(self) -> ServerInfo | None:
        """One that answers; None where none does."""
        return next((place.server for place in self.places if place.usable), None)

    @property
    def capacity(self) -> EngineCapacity | None:
        """What every usable place takes, or took when one was last usable; None before the first was."""
        seen = [place for place in self.places if place.server is not None]
        known = [place.server.engine for place in [each for each in seen if each.usable] or seen if place.server]
        if not known:
            return None
        return EngineCapacity(
            slots=min(each.slots for each in known),
            prefill_tokens=min(each.prefill_tokens for each in known),
            max_source_tokens=min(each.max_source_tokens for each in known),
            max_target_tokens=min(each.max_target_tokens for each in known),
        )

    def unavailable(self) -> Unavailable:
        """What requests are refused with."""
        return Unavailable(f"the models cannot be reached: {self.reason}")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Watch all places; close their clients at the end.

        Raises BundleError where the models are loaded here and the bundle is damaged.
        """
        async with AsyncExitStack() as started:
            for place in self.places:
                await place.start()
                started.push_async_callback(place.client.close)
            watchers = [asyncio.create_task(place.watch()) for place in self.places]
            try:
                yield
            finally:
                for watcher in watchers:
                    watcher.cancel()
                await asyncio.gather(*watchers, return_exceptions=True)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()
