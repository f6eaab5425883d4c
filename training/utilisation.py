"""Model FLOPs utilisation: what share of the GPUs' peak a step's useful arithmetic is (Chowdhery et al. 2022, B).

Useful is what the network's definition asks for, on the tensors as they are, padding included: matrix products of one
forward and one backward pass (training/planning/flops.py). What activation checkpointing or a loss in chunks computes a
second time is not.
"""

from __future__ import annotations

import torch

from model.configuration import HybridConfig
from training.data.batches import Batch
from training.objectives.micro_batches import StepBatch
from training.parallel.mesh import Mesh
from training.planning.flops import training_flops
from training.planning.hardware import peak_flops
from training.planning.workload import Work


def step_flops(config: HybridConfig, batch: StepBatch, mesh: Mesh) -> float:
    """Useful FLOPs of a step, of all processes together."""
    flops = (training_flops(config, work_of(each.batch, mesh.sequence.size)) for each in batch.micro_batches)
    return mesh.data.size * sum(flops)


def work_of(batch: Batch, slices: int = 1) -> Work:
    """What a batch asks for; its source is one of so many slices of the rows."""
    rows, slice_tokens = batch.source_BS.shape
    return Work(
        rows=rows,
        source_tokens=slice_tokens * slices,
        written_rows=batch.continuation_GT.shape[0],
        target_tokens=batch.continuation_GT.shape[1],
        asked_rows=len(batch.context_Q2),
        summed_rows=batch.summary_UT.shape[0],
        summary_tokens=batch.summary_UT.shape[1],
        guesses=batch.masked_PM.numel(),
    )


def peak_of_run(mesh: Mesh) -> float | None:
    """FLOP/s of all processes' GPUs in bf16, dense, by the vendor; None for devices whose figure is not known."""
    if mesh.device.type != "cuda":
        return None
    peak = peak_flops(torch.cuda.get_device_name(mesh.device))
    return None if peak is None else peak * mesh.layout.world_size
