"""Which source the next example of a task comes from."""

from __future__ import annotations

import numpy as np

from training.data.shards import Shard


def group_of(shard: Shard) -> str:
    """The name a recipe weights a shard by: its source, or `cloze` and `lead` for what was mined from Wikipedia."""
    for mined in ("cloze", "lead"):
        if shard.info.name.startswith(mined + "_"):
            return mined
    return shard.info.source


class Mixture:
    """Draws examples of one task, a group of shards by its weight, an example of the group evenly."""

    def __init__(
        self, shards: list[Shard], early: dict[str, float], late: dict[str, float], steps: tuple[int, int]
    ) -> None:
        """`early` and `late` are weights by group up to the first and from the second of `steps` on.

        Raises ValueError for a weight of a group that was not prepared.
        """
        groups: dict[str, list[Shard]] = {}
        for shard in shards:
            if len(shard.rows):
                groups.setdefault(group_of(shard), []).append(shard)
        for name in [*early, *late]:
            if name not in groups:
                raise ValueError(f"the mixture weights '{name}', but prepared are {', '.join(sorted(groups))}")
        self.names = sorted({*early, *late})
        self.groups = [groups[name] for name in self.names]
        self.ends = [np.cumsum([len(shard.rows) for shard in group]) for group in self.groups]
        self.early, self.late = (self._normalised(weights) for weights in (early, late))
        self.begin, self.end = steps

    def _normalised(self, weights: dict[str, float]) -> np.ndarray:
        values = np.array([weights.get(name, 0.0) for name in self.names])
        return values / values.sum()

    def weights(self, step: int) -> np.ndarray:
        """Chance of each group at a step."""
        progress = min(1.0, max(0.0, (step - self.begin) / (self.end - self.begin)))
        return self.early + (self.late - self.early) * progress

    def draw(self, step: int, chance: np.random.Generator) -> tuple[Shard, np.void]:
        """An example: its shard and its row there."""
        group = int(np.searchsorted(np.cumsum(self.weights(step)), chance.random(), side="right"))
        group = min(group, len(self.groups) - 1)
        place = int(chance.integers(self.ends[group][-1]))
        number = int(np.searchsorted(self.ends[group], place, side="right"))
        shard = self.groups[group][number]
        return shard, shard.rows[place - (int(self.ends[group][number - 1]) if number else 0)]
