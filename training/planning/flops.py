"""Parameters and FLOPs of the whole network: for plans, and for the MFU of a real run."""

from __future__ import annotations

from typing import Any

from training.planning.blocks import BACKWARD, build_blocks
from training.planning.workload import Network, Work, written_work


def parameter_count(config: Any) -> int:
    """Parameters of the network, the tied embedding once."""
    return int(sum(block.parameters.total for block in build_blocks(Network.of(config), written_work(1, 1, 1))))


def training_flops(config: Any, work: Work, *, recompute: bool = False) -> float:
    """FLOPs of one forward and backward pass.

    Matrix products alone, two FLOPs for each multiply-add, three passes' worth: forward, and in the backward pass one
    for the gradient of either factor. Causal attention counts the half of its scores that is read, whatever the kernel
    does. Padding counts, for it is computed; optimizer, norms and other elementwise work do not.

    Args:
        config: a HybridConfig, or anything with its fields.
        work: what the pass reads and writes.
        recompute: count the second forward pass that activation checkpointing makes; leave it out for MFU, which asks
            for the useful work only.
    """
    passes = 1 + BACKWARD + (1 if recompute else 0)
    return passes * forward_flops(config, work)


def forward_flops(config: Any, work: Work) -> float:
    """FLOPs of one forward pass."""
    return sum(block.forward_flops for block in build_blocks(Network.of(config), work))
