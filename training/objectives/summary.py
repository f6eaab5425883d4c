"""Summaries: negative log probability under the pointer decoder's mixture, nats a token."""

from __future__ import annotations

from torch import Tensor

from model.cross_entropy import IGNORE
from model.losses import mean_of_targets, mixture_loss, shift_right, summary_loss
from training.data.batches import Batch
from training.objectives.objective import SUMMED, Read, rows_of
from training.objectives.slice_heads import SliceHeads
from training.turns import Steps, together


class Summaries:
    """`Objective` of the pointer decoder."""

    name = "summary"
    unit = SUMMED
    begins_with_transfer = True

    def rows(self, batch: Batch) -> slice:
        return rows_of(batch).summed

    def count_targets(self, batch: Batch) -> int:
        return int((batch.summary_UT != IGNORE).sum())

    def loss(self, read: Read, targets: int | None) -> Tensor:
        batch, rows = read.batch, self.rows(read.batch)
        source = (read.memory_BSD[rows], batch.lengths_B[rows], batch.source_BS[rows])
        if read.states_RTD is not None:
            return mixture_loss(read.network, read.states_RTD, *source, batch.summary_UT, targets=targets)
        return summary_loss(read.network, *source, batch.summary_UT, targets=targets)

    def loss_of_slice(self, heads: SliceHeads, memory_BsD: Tensor, batch: Batch, targets: int | None) -> Steps[Tensor]:
        labels_UT, rows = batch.summary_UT, self.rows(batch)
        own_UsD, lengths_U = memory_BsD[rows], batch.lengths_B[rows]
        states_UTD = yield from heads.decoder_states("pointer", own_UsD, lengths_U, shift_right(heads.model, labels_UT))
        copy_keys_UsD = heads.model.pointer.copy_key(own_UsD)
        copied = heads.log_copied(states_UTD, copy_keys_UsD, lengths_U, batch.source_BS[rows], labels_UT)
        losses_UT, log_copied_UT = yield from together([heads.target_losses(states_UTD, labels_UT), copied])
        log_mixed_UT = heads.mixed(states_UTD, -losses_UT, log_copied_UT)
        return mean_of_targets(-log_mixed_UT, labels_UT, targets)
