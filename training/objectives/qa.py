"""Answers to questions: negative log probability of the answer's span, or of none, nats a question."""

from __future__ import annotations

from torch import Tensor

from model.losses import span_loss
from training.data.batches import Batch
from training.objectives.objective import MEMORY, Read, rows_of
from training.objectives.slice_heads import SliceHeads
from training.turns import Steps


class Answers:
    """`Objective` of the extractive decoder and its CRF."""

    name = "qa"
    unit = MEMORY
    begins_with_transfer = True

    def rows(self, batch: Batch) -> slice:
        return rows_of(batch).asked

    def count_targets(self, batch: Batch) -> int:
        return len(batch.answer_Q2)

    def loss(self, read: Read, targets: int | None) -> Tensor:
        batch, rows = read.batch, self.rows(read.batch)
        memory_QSD, lengths_Q = read.memory_BSD[rows], batch.lengths_B[rows]
        return span_loss(read.network, memory_QSD, lengths_Q, batch.context_Q2, batch.answer_Q2, targets=targets)

    def loss_of_slice(self, heads: SliceHeads, memory_BsD: Tensor, batch: Batch, targets: int | None) -> Steps[Tensor]:
        rows = self.rows(batch)
        emissions_QS3 = yield from heads.emissions(memory_BsD[rows], batch.lengths_B[rows])
        nll_Q = heads.model.extractive.crf.nll(emissions_QS3, batch.context_Q2, batch.answer_Q2)
        return nll_Q.sum() / (targets or len(nll_Q))
