"""The losses of a batch under sequence parallelism, in turns: one's transfers hide behind the others' computation.

The numbers are those of `compute_losses`, which runs on such a model too, one loss after the other.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from model.losses import IGNORE, mean_of_targets, shift_right
from training.data.batches import Batch
from training.objectives import Losses
from training.parallel.link import Steps, run, together
from training.parallel.sequence_heads import SplitHeads


def split_losses(heads: SplitHeads, memory_BsD: Tensor, batch: Batch) -> Losses:
    """Losses of a slice of the memory, and of a batch whose source is this rank's slice."""
    # What begins with a transfer comes first: the masked tokens' logits, which need none before them, hide those.
    tasks = {
        "summary": _summary(heads, memory_BsD, batch),
        "continuation": _continuation(heads, memory_BsD, batch),
        "qa": _qa(heads, memory_BsD, batch),
        "router": _router(heads, memory_BsD, batch),
        "masked": _masked(heads, memory_BsD, batch),
    }
    absent = {"qa": not len(batch.context_Q2), "summary": not len(batch.summary_UT)}
    going = {name: task for name, task in tasks.items() if not absent.get(name)}
    found = dict(zip(going, run(together(going.values())), strict=True))
    nothing = memory_BsD.new_zeros(())
    return Losses(**{name: found.get(name, nothing) for name in tasks})


def _continuation(heads: SplitHeads, memory_BsD: Tensor, batch: Batch) -> Steps[Tensor]:
    labels_GT = batch.continuation_GT
    rows = slice(0, len(labels_GT))
    read_GT = shift_right(heads.model, labels_GT)
    states_GTD = yield from heads.decoder_states("generative", memory_BsD[rows], batch.lengths_B[rows], read_GT)
    losses_GT = yield from heads.target_losses(states_GTD, labels_GT)
    return mean_of_targets(losses_GT, labels_GT)


def _summary(heads: SplitHeads, memory_BsD: Tensor, batch: Batch) -> Steps[Tensor]:
    labels_UT = batch.summary_UT
    first = len(batch.continuation_GT) + len(batch.context_Q2)
    rows = slice(first, first + len(labels_UT))
    own_UsD, lengths_U = memory_BsD[rows], batch.lengths_B[rows]
    states_UTD = yield from heads.decoder_states("pointer", own_UsD, lengths_U, shift_right(heads.model, labels_UT))
    copy_keys_UsD = heads.model.pointer.copy_key(own_UsD)
    copied = heads.log_copied(states_UTD, copy_keys_UsD, lengths_U, batch.source_BS[rows], labels_UT)
    losses_UT, log_copied_UT = yield from together([heads.target_losses(states_UTD, labels_UT), copied])
    return mean_of_targets(-heads.mixed(states_UTD, -losses_UT, log_copied_UT), labels_UT)


def _qa(heads: SplitHeads, memory_BsD: Tensor, batch: Batch) -> Steps[Tensor]:
    first = len(batch.continuation_GT)
    rows = slice(first, first + len(batch.context_Q2))
    emissions_QS3 = yield from heads.emissions(memory_BsD[rows], batch.lengths_B[rows])
    return heads.model.extractive.crf.nll(emissions_QS3, batch.context_Q2, batch.answer_Q2).mean()


def _router(heads: SplitHeads, memory_BsD: Tensor, batch: Batch) -> Steps[Tensor]:
    logits_B3 = yield from heads.task_logits(memory_BsD, batch.lengths_B)
    tasks_B = batch.route_B.long()
    losses_B = functional.cross_entropy(logits_B3.float(), tasks_B, reduction="none", ignore_index=IGNORE)
    return mean_of_targets(losses_B, tasks_B)


def _masked(heads: SplitHeads, memory_BsD: Tensor, batch: Batch) -> Steps[Tensor]:
    labels_PM = batch.masked_labels_PM
    own_PsD = memory_BsD[: len(labels_PM)]
    losses_PM = yield from heads.masked_token_losses(own_PsD, batch.masked_PM, labels_PM)
    return mean_of_targets(losses_PM, labels_PM)
