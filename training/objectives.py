"""What a step minimises: the losses of all heads on one encoder pass over the rows of every task."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.losses import continuation_loss, masked_token_loss, router_loss, span_loss, summary_loss
from model.network import HybridModel
from training.config import ObjectivesSection
from training.data.batches import Batch


class Losses(NamedTuple):
    """Means over each objective's own targets."""

    masked: Tensor
    """Cross-entropy of masked tokens, nats."""
    continuation: Tensor
    """Cross-entropy of continuations and of answers to instructions, nats a token."""
    qa: Tensor
    """Negative log probability of the answer's span, nats a question."""
    summary: Tensor
    """Negative log probability under the pointer's mixture, nats a token."""
    router: Tensor
    """Cross-entropy of the task, nats a row whose task token was dropped."""

    def weighted(self, section: ObjectivesSection) -> Tensor:
        """The sum that is minimised."""
        weights = (
            section.masked_weight,
            section.continuation_weight,
            section.qa_weight,
            section.summary_weight,
            section.router_weight,
        )
        return torch.stack([weight * loss for weight, loss in zip(weights, self, strict=True)]).sum()


def compute_losses(model: HybridModel, batch: Batch) -> Losses:
    """Losses of a batch, whose rows stand in the order pretraining, instructions, questions, summaries."""
    memory_BSD = model.encode(batch.source_BS, batch.lengths_B)
    masked = slice(0, len(batch.masked_PM))
    written = slice(0, len(batch.continuation_GT))
    asked = slice(written.stop, written.stop + len(batch.context_Q2))
    summed = slice(asked.stop, asked.stop + len(batch.summary_UT))
    nothing = memory_BSD.new_zeros(())
    return Losses(
        masked=masked_token_loss(model, memory_BSD[masked], batch.masked_PM, batch.masked_labels_PM),
        continuation=continuation_loss(model, memory_BSD[written], batch.lengths_B[written], batch.continuation_GT),
        qa=span_loss(model, memory_BSD[asked], batch.lengths_B[asked], batch.context_Q2, batch.answer_Q2)
        if len(batch.context_Q2)
        else nothing,
        summary=summary_loss(
            model, memory_BSD[summed], batch.lengths_B[summed], batch.source_BS[summed], batch.summary_UT
        )
        if len(batch.summary_UT)
        else nothing,
        router=router_loss(model, memory_BSD, batch.lengths_B, batch.route_B),
    )
