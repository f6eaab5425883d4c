"""Which GPU kernels a run uses."""

from __future__ import annotations

import torch

from model.network import HybridModel


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
        from training.kernels.side_by_side import run_units_together

        run_units_together(network)
