"""The task of rows whose task token was dropped: cross-entropy, nats a row."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from model.cross_entropy import IGNORE
from model.losses import mean_of_targets, router_loss
from training.data.batches import Batch
from training.objectives.objective import MEMORY, Read
from training.objectives.slice_heads import SliceHeads
from training.turns import Steps


class Routes:
    """`Objective` of the router, which reads every row."""

    name = "router"
    unit = MEMORY
    begins_with_transfer = True

    def rows(self, batch: Batch) -> slice:
        return slice(0, len(batch.route_B))

    def count_targets(self, batch: Batch) -> int:
        return int((batch.route_B != IGNORE).sum())

    def loss(self, read: Read, targets: int | None) -> Tensor:
        batch = read.batch
        return router_loss(read.network, read.memory_BSD, batch.lengths_B, batch.route_B, targets=targets)

    def loss_of_slice(self, heads: SliceHeads, memory_BsD: Tensor, batch: Batch, targets: int | None) -> Steps[Tensor]:
        logits_B3 = yield from heads.task_logits(memory_BsD, batch.lengths_B)
        tasks_B = batch.route_B.long()
        losses_B = functional.cross_entropy(logits_B3.float(), tasks_B, reduction="none", ignore_index=IGNORE)
        return mean_of_targets(losses_B, tasks_B, targets)
