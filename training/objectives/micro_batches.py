"""Micro-batches: what each data-parallel process computes at a time.

Losses are means over the targets of the whole batch. Every process builds the whole batch, so it counts those itself,
and the micro-batches' losses and gradients simply add up.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from model.cross_entropy import IGNORE
from model.tokenizer import PAD, QA, SUMMARY
from training.data.batches import Batch
from training.objectives.losses import count_targets
from training.objectives.objective import Targets


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some rows of every kind of a batch, and what their losses are divided by.

    A dataclass rather than a tuple: hooks on modules look for tensors inside of tuples.
    """

    batch: Batch
    targets: Targets


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What one process computes in a step."""

    step: int
    micro_batches: list[MicroBatch]
    tokens: int
    """Source and target tokens of the whole batch, padding not counted."""


def split(batch: Batch, data_rank: int, data_size: int, micro_batches: int, *, all_heads: bool) -> list[MicroBatch]:
    """The parts of one process: equally many rows of every kind, neighbours in the batch.

    With `all_heads`, a batch without questions or summaries gets a row of each that asks nothing: so every parameter
    has a gradient, be it zero, on every process and in every layout.
    """
    targets = count_targets(batch)
    count = data_size * micro_batches
    first = data_rank * micro_batches
    parts = [_part(batch, index, count) for index in range(first, first + micro_batches)]
    return [MicroBatch(_with_idle_rows(part) if all_heads else part, targets) for part in parts]


def slice_of_source(batch: Batch, rank: int, size: int, block: int) -> Batch:
    """The batch with slice `rank` of `size` of its source, padded so that slices are equal and hold whole blocks."""
    missing = -batch.source_BS.shape[1] % (size * block)
    padded_BS = functional.pad(batch.source_BS, (0, missing), value=PAD)
    return batch._replace(source_BS=padded_BS.chunk(size, dim=1)[rank].contiguous())


def _part(batch: Batch, index: int, count: int) -> Batch:
    """Part `index` of `count`."""
    if count == 1:
        return batch
    masked, written = len(batch.masked_PM), len(batch.continuation_GT)
    asked, summed = len(batch.context_Q2), len(batch.summary_UT)
    kinds = (masked, written - masked, asked, summed)
    starts = (0, masked, written, written + asked)
    rows = torch.cat([_share(size, index, count) + start for size, start in zip(kinds, starts, strict=True)])
    written_rows = torch.cat(
        [_share(size, index, count) + start for size, start in zip(kinds[:2], starts, strict=False)]
    )
    masked_rows, asked_rows, summed_rows = (_share(size, index, count) for size in (masked, asked, summed))
    part = Batch(
        batch.source_BS[rows],
        batch.lengths_B[rows],
        batch.route_B[rows],
        batch.masked_PM[masked_rows],
        batch.masked_labels_PM[masked_rows],
        batch.continuation_GT[written_rows],
        batch.context_Q2[asked_rows],
        batch.answer_Q2[asked_rows],
        batch.summary_UT[summed_rows],
        0,
    )
    targets = sum(int((labels != IGNORE).sum()) for labels in (part.continuation_GT, part.summary_UT))
    return part._replace(tokens=int(part.lengths_B.sum()) + targets)


def _with_idle_rows(batch: Batch) -> Batch:
    """One row without targets for each of questions and summaries that has none."""
    if not len(batch.context_Q2):
        nowhere = batch.context_Q2.new_tensor([[1, 1]])
        batch = _with_row(batch, QA, len(batch.continuation_GT))
        batch = batch._replace(context_Q2=nowhere, answer_Q2=torch.full_like(nowhere, -1))
    if not len(batch.summary_UT):
        batch = _with_row(batch, SUMMARY, len(batch.source_BS))
        batch = batch._replace(summary_UT=batch.summary_UT.new_full((1, batch.summary_UT.shape[1]), IGNORE))
    return batch


def _with_row(batch: Batch, task: int, place: int) -> Batch:
    """A source of its task's token alone, before row `place`."""

    def insert(values: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[:place], row, values[place:]])

    source_1S = torch.full_like(batch.source_BS[:1], PAD)
    source_1S[0, 0] = task
    return batch._replace(
        source_BS=insert(batch.source_BS, source_1S),
        lengths_B=insert(batch.lengths_B, torch.ones_like(batch.lengths_B[:1])),
        route_B=insert(batch.route_B, torch.full_like(batch.route_B[:1], IGNORE)),
    )


def _share(size: int, index: int, count: int) -> torch.Tensor:
    """Rows of part `index`, of `size` rows that `count` divides."""
    assert size % count == 0
    return torch.arange(index * size // count, (index + 1) * size // count)
