"""Activation checkpointing: layers whose inner results are computed again in the backward pass rather than kept."""

from __future__ import annotations

from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint

from model.network import HybridModel


def repeated_layers(network: HybridModel) -> list[nn.Module]:
    """What a network, or a pipeline stage's part of one, consists of many times."""
    units = getattr(network.hybrid, "units", [])  # which another stage of a pipeline may hold
    layers = [*network.encoder.layers, *units, *network.generative.layers, *network.pointer.layers]
    return [layer for layer in layers if not isinstance(layer, nn.Identity)]


def checkpoint_layers(network: HybridModel) -> None:
    """Keep the inputs of layers and units only; the backward pass computes the rest again."""
    for layer in repeated_layers(network):
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
