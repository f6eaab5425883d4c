"""The losses of a batch under sequence parallelism, in turns: one's transfers hide behind the others' computation.

The numbers are those of `compute_losses`, which runs on such a model too, one loss after the other.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from model.cross_entropy import IGNORE
from model.losses import mean_of_targets, shift_right
from training.data.batches import Batch
from training.data.parts import Targets
from training.objectives import Losses, rows_of
from training.parallel.link import Steps, run, together
from training.parallel.sequence_heads import SplitHeads


def split_losses(heads: SplitHeads, memory_BsD: Tensor, batch: Batch, targets: Targets | None) -> Losses:
    """Losses of a slice of the memory, and of a batch whose source is this rank's slice.

    With `targets`, those of a part of a batch, as in `compute_losses`.
    """
    # What begins with a transfer comes first: the masked tokens' logits, which need none before them, hide those.
    tasks = {
        "summary": _summary(heads, memory_BsD, batch, targets),
        "continuation": _continuation(heads, memory_BsD, batch, targets),
        "qa": _qa(heads, memory_BsD, batch, targets),
        "router": _router(heads, memory_BsD, batch, targets),
        "masked": _masked(heads, memory_BsD, batch, targets),
    }
    absent = {"qa": not len(batch.context_Q2), "summary": not len(batch.summary_UT)}
    going = {name: task for name, task in tasks.items() if not absent.get(name)}
    found = dict(zip(going, run(together(going.values())), strict=True))
    nothing = memory_BsD.new_zeros(())
    return Losses(**{name: found.get(name, nothing) for name in tasks})


def _continuation(heads: SplitHeads, memory_BsD: Tensor, batch: Batch, targets: Targets | None) -> Steps[Tensor]:
    labels_GT, rows = batch.continuation_GT, rows_of(batch).written
    read_GT = shift_right(heads.model, labels_GT)
    states_GTD = yield from heads.decoder_states("generative", memory_BsD[rows], batch.lengths_B[rows], read_GT)
    losses_GT = yield from heads.target_losses(states_GTD, labels_GT)
    return mean_of_targets(losses_GT, labels_GT, targets and targets.continuation)


def _summary(heads: SplitHeads, memory_BsD: Tensor, batch: Batch, targets: Targets | None) -> Steps[Tensor]:
    labels_UT, rows = batch.summary_UT, rows_of(batch).summed
    own_UsD, lengths_U = memory_BsD[rows], batch.lengths_B[rows]
    states_UTD = yield from heads.decoder_states("pointer", own_UsD, lengths_U, shift_right(heads.model, labels_UT))
    copy_keys_UsD = heads.model.pointer.copy_key(own_UsD)
    copied = heads.log_copied(states_UTD, copy_keys_UsD, lengths_U, batch.source_BS[rows], labels_UT)
    losses_UT, log_copied_UT = yield from together([heads.target_losses(states_UTD, labels_UT), copied])
    log_mixed_UT = heads.mixed(states_UTD, -losses_UT, log_copied_UT)
    return mean_of_targets(-log_mixed_UT, labels_UT, targets and targets.summary)


def _qa(heads: SplitHeads, memory_BsD: Tensor, batch: Batch, targets: Targets | None) -> Steps[Tensor]:
    rows = rows_of(batch).asked
    emissions_QS3 = yield from heads.emissions(memory_BsD[rows], batch.lengths_B[rows])
    nll_Q = heads.model.extractive.crf.nll(emissions_QS3, batch.context_Q2, batch.answer_Q2)
    return nll_Q.sum() / (targets.qa if targets else len(nll_Q))


def _router(heads: SplitHeads, memory_BsD: Tensor, batch: Batch, targets: Targets | None) -> Steps[Tensor]:
    logits_B3 = yield from heads.task_logits(memory_BsD, batch.lengths_B)
    tasks_B = batch.route_B.long()
    losses_B = functional.cross_entropy(logits_B3.float(), tasks_B, reduction="none", ignore_index=IGNORE)
    return mean_of_targets(losses_B, tasks_B, targets and targets.router)


def _masked(heads: SplitHeads, memory_BsD: Tensor, batch: Batch, targets: Targets | None) -> Steps[Tensor]:
    labels_PM = batch.masked_labels_PM
    own_PsD = memory_BsD[rows_of(batch).masked]
    losses_PM = yield from heads.masked_token_losses(own_PsD, batch.masked_PM, labels_PM)
    return mean_of_targets(losses_PM, labels_PM, targets and targets.masked)
