"""Masked tokens of the pretraining rows: cross-entropy of what stood there, nats a token."""

from __future__ import annotations

from torch import Tensor

from model.cross_entropy import IGNORE
from model.losses import masked_token_loss, mean_of_targets
from training.data.batches import Batch
from training.objectives.objective import MEMORY, Read, rows_of
from training.objectives.slice_heads import SliceHeads
from training.turns import Steps


class MaskedTokens:
    """`Objective` of the language-model head."""

    name = "masked"
    unit = MEMORY
    begins_with_transfer = False

    def rows(self, batch: Batch) -> slice:
        return rows_of(batch).masked

    def count_targets(self, batch: Batch) -> int:
        return int((batch.masked_labels_PM != IGNORE).sum())

    def loss(self, read: Read, targets: int | None) -> Tensor:
        batch = read.batch
        memory_PSD = read.memory_BSD[self.rows(batch)]
        return masked_token_loss(read.network, memory_PSD, batch.masked_PM, batch.masked_labels_PM, targets=targets)

    def loss_of_slice(self, heads: SliceHeads, memory_BsD: Tensor, batch: Batch, targets: int | None) -> Steps[Tensor]:
        labels_PM = batch.masked_labels_PM
        losses_PM = yield from heads.masked_token_losses(memory_BsD[self.rows(batch)], batch.masked_PM, labels_PM)
        return mean_of_targets(losses_PM, labels_PM, targets)
