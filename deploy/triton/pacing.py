"""How much of the machine decode steps leave to a prefill beside them.

    steps   ▇ ▇ ▇ ▇ ▇    ▇    ▇    ▇      ▇      ▇      ▇ ▇ ▇ ▇ ▇
    prefill          ░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░░
                     └ a token every three steps' time   └ the rarer the longer it has gone on

Both want all cores. Where steps are held back to one in three steps' time, tokens come three times as rarely as they
would alone, and the prefill has most of the machine; one that takes long is given more and more of it, so that it does
not take much longer than it would alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

EASE_S = 0.25
"""A prefill that has gone on for so long is a long one: from here on the gap grows in proportion to its time."""

LONGEST_GAP_S = 0.1
"""No gap is made longer than this."""

WEIGHT = 0.1
"""Of a new step in the mean."""


@dataclass(slots=True)
class Pace:
    """When the next step is due, from how long steps take when nothing runs beside them."""

    gap_steps: float
    """Time between two steps beside a prefill, in steps without one."""

    _alone_s: dict[int, float] = field(default_factory=dict, repr=False)
    """Mean time of a step by the number of its rows, in powers of two."""

    _rows: int = 0
    _took_s: float = 0.0
    _ended_s: float = 0.0

    def step(self, rows: int, began_s: float, ended_s: float, *, beside_prefill: bool) -> None:
        """A step was made."""
        self._rows, self._took_s, self._ended_s = rows.bit_length(), ended_s - began_s, ended_s
        if not beside_prefill:
            mean_s = self._alone_s.get(self._rows, self._took_s)
            self._alone_s[self._rows] = mean_s + WEIGHT * (self._took_s - mean_s)

    def due_s(self, now_s: float, prefill_began_s: float) -> float:
        """When the next step is to begin while a prefill is under way, so that its tokens come in time."""
        alone_s = self._alone_s.get(self._rows, self._took_s)
        gap_s = self.gap_steps * alone_s * max(1.0, (now_s - prefill_began_s) / EASE_S)
        return self._ended_s + min(gap_s, LONGEST_GAP_S) - self._took_s
