"""Continuations of text, and answers to instructions: cross-entropy of the generative decoder, nats a token."""

from __future__ import annotations

from torch import Tensor

from model.cross_entropy import IGNORE
from model.losses import continuation_loss, mean_of_targets, shift_right, states_loss
from training.data.batches import Batch
from training.objectives.objective import WRITTEN, Read, rows_of
from training.objectives.slice_heads import SliceHeads
from training.turns import Steps


class Continuation:
    """`Objective` of the generative decoder."""

    name = "continuation"
    unit = WRITTEN
    begins_with_transfer = True

    def rows(self, batch: Batch) -> slice:
        return rows_of(batch).written

    def count_targets(self, batch: Batch) -> int:
        return int((batch.continuation_GT != IGNORE).sum())

    def loss(self, read: Read, targets: int | None) -> Tensor:
        batch, rows = read.batch, self.rows(read.batch)
        labels_GT = batch.continuation_GT
        if read.states_RTD is not None:
            return states_loss(read.network, read.states_RTD, labels_GT, targets=targets)
        return continuation_loss(read.network, read.memory_BSD[rows], batch.lengths_B[rows], labels_GT, targets=targets)

    def loss_of_slice(self, heads: SliceHeads, memory_BsD: Tensor, batch: Batch, targets: int | None) -> Steps[Tensor]:
        labels_GT, rows = batch.continuation_GT, self.rows(batch)
        read_GT = shift_right(heads.model, labels_GT)
        states_GTD = yield from heads.decoder_states("generative", memory_BsD[rows], batch.lengths_B[rows], read_GT)
        losses_GT = yield from heads.target_losses(states_GTD, labels_GT)
        return mean_of_targets(losses_GT, labels_GT, targets)
