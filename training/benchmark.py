"""`trident bench train`: throughput and memory of training steps on made-up tokens.

The steps are real ones: losses, backward pass, clipping, optimizer. Their rows are pretraining rows, a source with
masked tokens and its continuation, none of them padded, so a token counted is a token computed.
"""

from __future__ import annotations

import platform
import statistics
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import torch

from model.configuration import HybridConfig
from model.network import HybridModel
from model.tokenizer import SPECIAL_TOKENS
from training.config import ObjectivesSection, OptimizerSection
from training.data.batches import Batch
from training.kernels.choice import choose_kernels, join_recurrences
from training.kernels.compiled import compile_layers, refusing_to_fall_back
from training.memory import checkpoint_layers
from training.objectives.losses import compute_losses
from training.optimizer import Optimizers
from training.planning.flops import training_flops
from training.planning.hardware import peak_flops
from training.train import pick_device
from training.utilisation import work_of


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What is measured."""

    preset: str = "teacher"
    rows: int = 64
    source_tokens: int = 512
    target_tokens: int = 128
    masked_fraction: float = 0.25
    compile: bool = False
    activation_checkpointing: bool = False
    steps: int = 10
    warmup_steps: int = 5
    remark: str = ""
    """What a table should say of it beside."""

    @property
    def tokens(self) -> int:
        """Source and target tokens of a step."""
        return self.rows * (self.source_tokens + self.target_tokens)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """What was found."""

    workload: Workload
    parameters: int
    loss: float
    """After the last step."""
    step_s: list[float]
    flops_per_step: float
    peak_flops: float | None
    """Of the device, by its vendor; None where it is not known."""
    cudnn_attention: bool
    warmup_s: float
    activation_peak_bytes: int | None
    """A step's own memory at its peak, gradients not counted; None where the device does not tell, as below."""
    peak_bytes: int | None
    device: str

    @property
    def tokens_per_s(self) -> float:
        """Of the median step."""
        return self.workload.tokens / statistics.median(self.step_s)

    def as_dict(self) -> dict[str, Any]:
        """What the raw results hold."""
        found = asdict(self)
        peak, device = found.pop("peak_flops"), found.pop("device")
        return {
            **found.pop("workload"),
            **found,
            "tokens_per_step": self.workload.tokens,
            "tokens_per_s": self.tokens_per_s,
            "mfu": None if peak is None else self.flops_per_step / statistics.median(self.step_s) / peak,
            "machine": {
                "device": device,
                "torch": str(torch.__version__),
                "cuda": torch.version.cuda,
                "python": platform.python_version(),
            },
        }


def measure(workload: Workload) -> Measurement:
    """Run the steps."""
    device = pick_device("auto")
    torch.manual_seed(0)
    choose_kernels()
    with device:
        network = HybridModel(HybridConfig.from_preset(workload.preset))
    network.train()
    optimizers = Optimizers(network, OptimizerSection(), fused=device.type == "cuda")
    if workload.activation_checkpointing:
        checkpoint_layers(network)
    else:
        join_recurrences(network, device)
    if workload.compile:
        compile_layers(network)
    batch = made_up_batch(workload, network.config.vocab_size).to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    began_s = time.perf_counter()
    seconds: list[float] = []
    activations: list[int] = []
    with refusing_to_fall_back() if workload.compile else nullcontext():
        for step in range(workload.warmup_steps + workload.steps):
            _synchronise(device)
            started_s = time.perf_counter()
            standing = _start_of_peak(device)
            with autocast:
                loss = compute_losses(network, batch).weighted(ObjectivesSection())
            loss.backward()
            activations.append(_peak(device) - standing)
            optimizers.step(1.0)
            _synchronise(device)
            if step == workload.warmup_steps - 1:
                warmup_s = time.perf_counter() - began_s
            if step >= workload.warmup_steps:
                seconds.append(time.perf_counter() - started_s)
    gradients = sum(each.numel() * each.element_size() for each in network.parameters() if each.requires_grad)
    return Measurement(
        workload=workload,
        parameters=sum(each.numel() for each in network.parameters()),
        loss=float(loss.detach()),
        step_s=seconds,
        flops_per_step=training_flops(network.config, work_of(batch)),
        peak_flops=peak_flops(_device_name(device)),
        cudnn_attention=torch.backends.cuda.cudnn_sdp_enabled(),
        warmup_s=warmup_s,
        activation_peak_bytes=max(activations) - gradients if device.type == "cuda" else None,
        peak_bytes=torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        device=_device_name(device),
    )


def made_up_batch(workload: Workload, vocabulary: int) -> Batch:
    """Pretraining rows of random tokens."""
    chance = torch.Generator().manual_seed(1)
    rows, width = workload.rows, workload.source_tokens
    masked = int(workload.masked_fraction * width)

    def tokens(size: int) -> torch.Tensor:
        return torch.randint(len(SPECIAL_TOKENS), vocabulary, (rows, size), generator=chance)

    places = torch.rand((rows, width), generator=chance).argsort(1)[:, :masked].sort(1).values
    none = torch.zeros((0, 2), dtype=torch.int32)
    return Batch(
        source_BS=tokens(width).int(),
        lengths_B=torch.full((rows,), width, dtype=torch.int32),
        route_B=torch.zeros(rows, dtype=torch.int64),
        masked_PM=places.int(),
        masked_labels_PM=tokens(masked),
        continuation_GT=tokens(workload.target_tokens),
        context_Q2=none,
        answer_Q2=none,
        summary_UT=torch.zeros((0, 16), dtype=torch.int64),
        tokens=workload.tokens,
    )


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else platform.machine()


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _start_of_peak(device: torch.device) -> int:
    """Bytes allocated now, from where the next peak is counted; 0 where the device does not tell."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
