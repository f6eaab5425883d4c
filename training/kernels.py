"""Which GPU kernels a run uses."""

from __future__ import annotations

from typing import Any

import torch

import model.losses
from model.hybrid import HybridUnit
from model.network import HybridModel
from training.memory import repeated_layers


def choose_kernels() -> None:
    """TF32 for what is computed in float32. Attention's kernel PyTorch chooses: on an H100 cuDNN's, whose gradients
    are right (docs/results/attention-gradients.json)."""
    torch.set_float32_matmul_precision("high")


def join_recurrences(network: HybridModel, device: torch.device) -> None:
    """On a GPU, let the hybrid layer's units run their recurrences at once.

    For a process that has the whole layer, its weights whole, and keeps its activations.
    """
    if device.type == "cuda":
        # Triton comes with PyTorch's GPU builds alone.
        from training.side_by_side import run_units_together

        run_units_together(network)


def compile_layers(network: HybridModel, *, tuned: bool = True) -> None:
    """Compile what repeats, one graph for all layers of a kind; of hybrid units what is no recurrence.

    Each size of rows, of which a run has two, gets graphs of its own. `tuned` ones take the fastest of several tilings
    of every fused kernel: not for processes that must round alike.
    """
    options: dict[str, Any] = {"dynamic": False, "options": {"max_autotune_pointwise": tuned}}
    for layer in repeated_layers(network):
        (layer.attention if isinstance(layer, HybridUnit) else layer).compile(**options)
    if together := getattr(network.hybrid.forward, "compile", None):  # where `join_recurrences` put it
        together(**options)
    model.losses.token_losses = torch.compile(model.losses.token_losses, **options)
