"""The losses of a batch under sequence parallelism, in turns: one's transfers hide behind the others' computation.

The numbers are those of `compute_losses`, which runs on such a model too, one loss after the other.
"""

from __future__ import annotations

from torch import Tensor

from training.data.batches import Batch
from training.objectives.losses import NAMES, OBJECTIVES, Losses, has_rows
from training.objectives.objective import UNITS, Objective, Targets
from training.parallel.sequence_heads import SplitHeads
from training.turns import run, together


def split_losses(heads: SplitHeads, memory_BsD: Tensor, batch: Batch, targets: Targets | None) -> Losses:
    """Losses of a slice of the memory, and of a batch whose source is this rank's slice.

    With `targets`, those of a part of a batch, as in `compute_losses`.
    """
    going = {
        each.name: each.loss_of_slice(heads, memory_BsD, batch, targets[each.name] if targets else None)
        for each in sorted(OBJECTIVES, key=_turn)
        if has_rows(each, batch)
    }
    found = dict(zip(going, run(together(going.values())), strict=True))
    nothing = memory_BsD.new_zeros(())
    return Losses({name: found.get(name, nothing) for name in NAMES})


def _turn(objective: Objective) -> tuple[bool, int]:
    """What has the most to send goes first; what begins with work of its own goes last, and hides those transfers."""
    return not objective.begins_with_transfer, -UNITS.index(objective.unit)
