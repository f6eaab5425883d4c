"""The training losses of all heads: means over real targets, 0 where a batch has none.

A label of IGNORE is no target. Where rows are a part of a larger batch, `targets` is the number in all of it: so the
parts' losses add up to the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.cross_entropy import IGNORE
from model.network import HybridModel


def masked_token_loss(
    model: HybridModel, memory_BSD: Tensor, positions_BM: Tensor, labels_BM: Tensor, *, targets: int | None = None
) -> Tensor:
    """Cross-entropy of the masked tokens.

    Args:
        model: the network.
        memory_BSD: the encoder's result on the masked rows.
        positions_BM: where masked tokens stand; any position where the label is IGNORE.
        labels_BM: what stood there.
        targets: what to divide by, in place of the number of labels.
    """
    return mean_of_targets(model.masked_token_losses(memory_BSD, positions_BM, labels_BM), labels_BM, targets)


def continuation_loss(
    model: HybridModel,
    memory_BSD: Tensor,
    lengths_B: Tensor | None,
    labels_BT: Tensor,
    *,
    targets: int | None = None,
) -> Tensor:
    """Cross-entropy of the generative decoder; labels are token ids and the end token, then IGNORE."""
    states_BTD = model.decoder_states("generative", memory_BSD, lengths_B, shift_right(model, labels_BT))
    return states_loss(model, states_BTD, labels_BT, targets=targets)


def states_loss(model: HybridModel, states_BTD: Tensor, labels_BT: Tensor, *, targets: int | None = None) -> Tensor:
    """`continuation_loss` from the generative decoder's states on."""
    return mean_of_targets(model.target_losses(states_BTD, labels_BT), labels_BT, targets)


def summary_loss(
    model: HybridModel,
    memory_BSD: Tensor,
    lengths_B: Tensor | None,
    source_BS: Tensor,
    labels_BT: Tensor,
    *,
    targets: int | None = None,
) -> Tensor:
    """Negative log probability of the pointer decoder's mixture; arguments as in `continuation_loss`.

    The smoothed share is the vocabulary distribution's alone: spread over the mixture, it would teach to copy nothing.
    """
    states_BTD = model.decoder_states("pointer", memory_BSD, lengths_B, shift_right(model, labels_BT))
    return mixture_loss(model, states_BTD, memory_BSD, lengths_B, source_BS, labels_BT, targets=targets)


def mixture_loss(
    model: HybridModel,
    states_BTD: Tensor,
    memory_BSD: Tensor,
    lengths_B: Tensor | None,
    source_BS: Tensor,
    labels_BT: Tensor,
    *,
    targets: int | None = None,
) -> Tensor:
    """`summary_loss` from the pointer decoder's states on."""
    log_generated_BT = -model.target_losses(states_BTD, labels_BT)
    copy_keys_BSD = model.pointer.copy_key(memory_BSD)
    losses_BT = -model.pointer.log_target(states_BTD, log_generated_BT, copy_keys_BSD, lengths_B, source_BS, labels_BT)
    return mean_of_targets(losses_BT, labels_BT, targets)


def span_loss(
    model: HybridModel,
    memory_BSD: Tensor,
    lengths_B: Tensor | None,
    context_B2: Tensor,
    answer_B2: Tensor,
    *,
    targets: int | None = None,
) -> Tensor:
    """Negative log probability of the answers, mean over rows; `context_B2` and `answer_B2` as in `SpanCRF.nll`."""
    emissions_BS3 = model.emissions(memory_BSD, lengths_B)
    nll_B = model.extractive.crf.nll(emissions_BS3, context_B2, answer_B2)
    return nll_B.sum() / (targets or max(1, len(nll_B)))


def router_loss(
    model: HybridModel, memory_BSD: Tensor, lengths_B: Tensor | None, tasks_B: Tensor, *, targets: int | None = None
) -> Tensor:
    """Cross-entropy of the tasks 0, 1, 2; IGNORE where a row does not teach the router."""
    logits_B3 = model.task_logits(memory_BSD, lengths_B).float()
    losses_B = functional.cross_entropy(logits_B3, tasks_B.long(), reduction="none", ignore_index=IGNORE)
    return mean_of_targets(losses_B, tasks_B, targets)


def shift_right(model: HybridModel, labels_BT: Tensor) -> Tensor:
    """What a decoder reads to predict the labels: `<s>`, then all but the last; pads in place of IGNORE."""
    begin_B1 = torch.full_like(labels_BT[:, :1], model.config.bos_token_id)
    read_BT = torch.cat([begin_B1, labels_BT[:, :-1]], dim=1)
    return torch.where(read_BT == IGNORE, model.config.pad_token_id, read_BT)


def mean_of_targets(losses: Tensor, labels: Tensor, targets: int | None = None) -> Tensor:
    """Sum over the labels that count, by `targets` or their number; 0, with a gradient of 0, where none does."""
    counted = labels != IGNORE
    return torch.where(counted, losses, 0).sum() / (targets or counted.sum().clamp(min=1))
