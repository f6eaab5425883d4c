"""Activation checkpointing: layers whose inner results are computed again in the backward pass rather than kept."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from model.network import HybridModel


def repeated_layers(network: HybridModel) -> list[nn.Module]:
    """What a network consists of many times, and what most of its activations are kept for."""
    return [*network.encoder.layers, *network.hybrid.units, *network.generative.layers, *network.pointer.layers]


def checkpoint_layers(network: HybridModel) -> None:
    """Keep only the input of each layer; parameters keep their names."""
    for layer in repeated_layers(network):
        layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Any, *arguments: Any, **named: Any) -> Any:
    return checkpoint(forward, *arguments, use_reentrant=False, **named)
