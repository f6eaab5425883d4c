"""Classes of service: whose requests go first when not everybody's can."""

from __future__ import annotations

import enum


class Tier(enum.Enum):
    """What a request was promised."""

    PRIORITY = "priority"
    """Before everything else."""

    DEFAULT = "default"
    FLEX = "flex"
    """What the others leave, and in bounded time all the same."""

    @property
    def weight(self) -> float:
        """What an answer in time is worth beside one of the default class."""
        return _WEIGHTS[self]

    @property
    def patience_s(self) -> float:
        """By how much later than it came a request counts as having come, among requests of its length."""
        return _PATIENCE_S[self]

    @property
    def turn_after(self) -> int:
        """Batches that go for what they pay, before one goes to a request that is past due."""
        return _TURN_AFTER[self]


_WEIGHTS = {Tier.PRIORITY: 8.0, Tier.DEFAULT: 1.0, Tier.FLEX: 0.1}
_PATIENCE_S = {Tier.PRIORITY: 0.0, Tier.DEFAULT: 1.0, Tier.FLEX: 20.0}
_TURN_AFTER = {Tier.PRIORITY: 1, Tier.DEFAULT: 1, Tier.FLEX: 7}
