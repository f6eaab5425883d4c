"""Cross-entropy over the vocabulary, a chunk of labels at a time.

The vocabulary is large, so logits exist only where a target may stand, and for one chunk at a time: they are computed
again in the backward pass rather than kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

IGNORE = -100
"""A label that no loss counts."""

CHUNK = 8_192
"""Targets whose logits exist at once: 1 GB in float32 at a vocabulary of 32,000."""

TokenLosses = Callable[[Tensor, Tensor], Tensor]
"""Cross-entropy [N] of states [N,D] with labels [N]."""


def cross_entropy(token_losses: TokenLosses, states_BTD: Tensor, labels_BT: Tensor) -> Tensor:
    """Of the output layer's logits with the labels, float32 [B,T]; 0 where a label is IGNORE.

    `token_losses` is called on at most `CHUNK` labels, and again in the backward pass where there are more than that.
    """
    states_ND, labels_N = states_BTD.flatten(0, 1), labels_BT.flatten().long()
    if len(labels_N) <= CHUNK:
        return token_losses(states_ND, labels_N).view(labels_BT.shape)
    losses = [
        checkpoint(token_losses, states, labels, use_reentrant=False, preserve_rng_state=False)
        for states, labels in zip(states_ND.split(CHUNK), labels_N.split(CHUNK), strict=True)
    ]
    return torch.cat(losses).view(labels_BT.shape)


def tied_token_losses(states_ND: Tensor, embedding_VD: Tensor, labels_N: Tensor) -> Tensor:
    """Cross-entropy [N] of states [N,D] with labels [N], where the embedding is the output layer."""
    logits_NV = functional.linear(states_ND, embedding_VD).float()
    return functional.cross_entropy(logits_NV, labels_N, reduction="none", ignore_index=IGNORE)
