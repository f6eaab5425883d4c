"""All objectives, and their losses on a batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from model.network import HybridModel
from training.config import ObjectivesSection
from training.data.batches import Batch
from training.objectives.continuation import Continuation
from training.objectives.masked import MaskedTokens
from training.objectives.objective import UNITS, Objective, Read, Targets
from training.objectives.qa import Answers
from training.objectives.router import Routes
from training.objectives.summary import Summaries

OBJECTIVES: tuple[Objective, ...] = (MaskedTokens(), Continuation(), Answers(), Summaries(), Routes())
"""In the order of metrics, and of losses that stand in one tensor, [O]."""
NAMES = tuple(objective.name for objective in OBJECTIVES)


class Losses(dict[str, Tensor]):
    """Means over each objective's own targets, by name, in the order of `OBJECTIVES`."""

    def stacked(self) -> Tensor:
        """As one tensor, [O]."""
        return torch.stack(list(self.values()))

    def weighted(self, section: ObjectivesSection) -> Tensor:
        """The sum that is minimised."""
        weights = section.weights
        return torch.stack([weights[name] * loss for name, loss in self.items()]).sum()


def compute_losses(network: HybridModel, batch: Batch, targets: Targets | None = None) -> Losses:
    """Losses of a batch; with `targets`, of a part of a batch, divided by the number of targets in the whole."""
    read = Read(network, batch, network.encode(batch.source_BS, batch.lengths_B))
    found = dict(each for unit in UNITS for each in losses_at(unit, read, targets))
    return Losses({name: found[name] for name in NAMES})


def losses_at(unit: str, read: Read, targets: Targets | None) -> Iterator[tuple[str, Tensor]]:
    """Names and losses of the objectives that stand on a unit of the network; 0 where a batch has no rows for one."""
    for each in OBJECTIVES:
        if each.unit != unit:
            continue
        if has_rows(each, read.batch):
            yield each.name, each.loss(read, targets[each.name] if targets else None)
        else:
            yield each.name, read.memory_BSD.new_zeros(())


def has_rows(objective: Objective, batch: Batch) -> bool:
    """Whether a batch holds anything for an objective."""
    rows = objective.rows(batch)
    return rows.stop > rows.start


def count_targets(batch: Batch) -> Targets:
    """Of a batch on the CPU, at least 1 of each objective."""
    return {objective.name: max(1, objective.count_targets(batch)) for objective in OBJECTIVES}
