"""An objective: a named loss on one encoder pass over the rows of every task.

    rows of a batch   | pretraining | instructions | questions | summaries |
    memory            masked ········                qa ·······               router: all
    written           continuation ················
    summed                                                       summary ···

`training/objectives/losses.py` lists them, and whoever computes losses iterates over that list: a whole network, the
stages of a pipeline, processes that share every row. To add one, write its file, list it there, and give its weight a
field in the recipe's [objectives].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor

from model.network import HybridModel
from training.data.batches import Batch
from training.objectives.slice_heads import SliceHeads
from training.turns import Steps

MEMORY, WRITTEN, SUMMED = UNITS = ("memory", "written", "summed")
"""Units of the network, in order, behind which objectives stand: the encoders' result, and either decoder's states
(training/parallel/stage.py)."""

Targets = Mapping[str, int]
"""Of each objective in a whole batch, at least 1."""


class Rows(NamedTuple):
    """Which rows of a batch each head reads."""

    masked: slice
    written: slice
    asked: slice
    summed: slice


def rows_of(batch: Batch) -> Rows:
    """They stand in the order pretraining, instructions, questions, summaries."""
    written, asked, summed = len(batch.continuation_GT), len(batch.context_Q2), len(batch.summary_UT)
    return Rows(
        masked=slice(0, len(batch.masked_PM)),
        written=slice(0, written),
        asked=slice(written, written + asked),
        summed=slice(written + asked, written + asked + summed),
    )


@dataclass(frozen=True, slots=True)
class Read:
    """What there is for an objective to read."""

    network: HybridModel
    """Or a pipeline stage's part of one, which holds what the unit needs."""
    batch: Batch
    memory_BSD: Tensor
    """Of all rows."""
    states_RTD: Tensor | None = None
    """The decoder's, of the rows that the objective reads; None where its layers have not run yet, and the objective
    runs them."""


class Objective(Protocol):
    """One loss. Implementations hold no state: what changes from batch to batch comes with it."""

    name: str
    """In metrics; with `_weight` behind it, in recipes."""
    unit: str
    """One of `UNITS`: where in the network it stands."""
    begins_with_transfer: bool
    """Whether its slice first waits for other processes: those that do not go last, to compute while others wait."""

    def rows(self, batch: Batch) -> slice:
        """The rows it reads; it is not computed where there are none."""

    def count_targets(self, batch: Batch) -> int:
        """Targets in a batch on the CPU; a batch's loss is their mean."""

    def loss(self, read: Read, targets: int | None) -> Tensor:
        """Of a batch; with `targets`, of a part of one, divided by the number of targets in the whole."""

    def loss_of_slice(self, heads: SliceHeads, memory_BsD: Tensor, batch: Batch, targets: int | None) -> Steps[Tensor]:
        """The same whole loss where this process holds a slice of every row's source, yielding while it waits."""
