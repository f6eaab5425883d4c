"""How fast a queue empties while requests wait in it: what clients that were refused are told to wait."""

from __future__ import annotations

from dataclasses import dataclass

WEIGHT = 0.1
"""Of a new observation."""


@dataclass(slots=True)
class DrainRate:
    """Time between departures from a queue that was not empty, by token."""

    seconds_per_token: float = 0.0
    """0 before the first observation."""

    _last_s: float | None = None

    def depart(self, tokens: int, arrived_s: float, now_s: float) -> None:
        """Requests of `tokens`, the first of which came at `arrived_s`, leave the queue.

        Only those that were there at the departure before tell how long the queue takes: others came later.
        """
        if self._last_s is not None and arrived_s <= self._last_s:
            seconds = (now_s - self._last_s) / tokens
            weight = WEIGHT if self.seconds_per_token else 1.0
            self.seconds_per_token += weight * (seconds - self.seconds_per_token)
        self._last_s = now_s
