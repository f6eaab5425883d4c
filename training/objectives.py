"""What a step minimises: the losses of all heads on one encoder pass over the rows of every task."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from model.losses import continuation_loss, masked_token_loss, router_loss, span_loss, summary_loss
from model.network import HybridModel
from training.config import ObjectivesSection
from training.data.batches import Batch
from training.data.parts import Targets


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
        return torch.stack([weight * loss for weight, loss in zip(section.weights, self, strict=True)]).sum()


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


def compute_losses(model: HybridModel, batch: Batch, targets: Targets | None = None) -> Losses:
    """Losses of a batch; with `targets`, of a part of a batch, divided by the number of targets in the whole."""
    memory_BSD = model.encode(batch.source_BS, batch.lengths_B)
    _, written, _, summed = rows_of(batch)
    masked, qa, router = encoder_losses(model, memory_BSD, batch, targets)
    continuation = continuation_loss(
        model,
        memory_BSD[written],
        batch.lengths_B[written],
        batch.continuation_GT,
        targets=targets and targets.continuation,
    )
    summary = memory_BSD.new_zeros(())
    if len(batch.summary_UT):
        summary = summary_loss(
            model,
            memory_BSD[summed],
            batch.lengths_B[summed],
            batch.source_BS[summed],
            batch.summary_UT,
            targets=targets and targets.summary,
        )
    return Losses(masked, continuation, qa, summary, router)


def encoder_losses(
    model: HybridModel, memory_BSD: Tensor, batch: Batch, targets: Targets | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of the heads that read the memory alone: masked tokens, question answering, router."""
    rows, lengths_B = rows_of(batch), batch.lengths_B
    masked = masked_token_loss(
        model,
        memory_BSD[rows.masked],
        batch.masked_PM,
        batch.masked_labels_PM,
        targets=targets and targets.masked,
    )
    qa = memory_BSD.new_zeros(())
    if len(batch.context_Q2):
        qa = span_loss(
            model,
            memory_BSD[rows.asked],
            lengths_B[rows.asked],
            batch.context_Q2,
            batch.answer_Q2,
            targets=targets and targets.qa,
        )
    return masked, qa, router_loss(model, memory_BSD, lengths_B, batch.route_B, targets=targets and targets.router)
