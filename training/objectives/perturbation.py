"""A perturbation of embeddings: what a network reads in place of its tokens' embeddings, from outside."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from model.network import HybridModel

Perturbation = Callable[[Tensor], Tensor]
"""Embedded tokens […,D] → what is read in their place. Called once for the sources and once for each decoder's targets;
tensor-parallel processes have to perturb alike."""


def perturb_embeddings(network: HybridModel, perturbation: Perturbation) -> RemovableHandle:
    """From now on, until the handle is removed. The output layer, which is the same matrix, stays as it is.

    On a pipeline stage that reads no tokens nothing is perturbed.
    """
    return network.embedding.register_forward_hook(lambda _module, _tokens, embedded: perturbation(embedded))
