"""Parameters and FLOPs, against the real network: counted there, tensor by tensor and product by product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.configuration import HybridConfig
from model.losses import continuation_loss, masked_token_loss, router_loss, span_loss, summary_loss
from model.network import HybridModel
from training.planning.flops import forward_flops, parameter_count, training_flops
from training.planning.workload import Work

SOURCE, TARGET, SUMMARY, GUESSES = 40, 12, 10, 7
WORK = Work(
    rows=5,
    source_tokens=SOURCE,
    written_rows=2,
    target_tokens=TARGET,
    asked_rows=2,
    summed_rows=1,
    summary_tokens=SUMMARY,
    guesses=2 * GUESSES,
)


@pytest.fixture
def network() -> HybridModel:
    torch.manual_seed(0)
    return HybridModel(HybridConfig.from_preset("nano"))


def total_loss(model: HybridModel) -> torch.Tensor:
    """All heads on WORK, the way training/objectives.py calls them."""
    source_BS = torch.randint(16, 1000, (5, SOURCE))
    lengths_B = torch.full((5,), SOURCE)
    memory_BSD = model.encode(source_BS, lengths_B)
    positions_BM, labels_BM = torch.randint(0, SOURCE, (2, GUESSES)), torch.randint(16, 1000, (2, GUESSES))
    context_B2, answer_B2 = torch.tensor([[3, SOURCE]] * 2), torch.tensor([[5, 7]] * 2)
    written, asked, summed = slice(0, 2), slice(2, 4), slice(4, 5)
    return (
        masked_token_loss(model, memory_BSD[written], positions_BM, labels_BM)
        + continuation_loss(model, memory_BSD[written], lengths_B[written], torch.randint(16, 1000, (2, TARGET)))
        + span_loss(model, memory_BSD[asked], lengths_B[asked], context_B2, answer_B2)
        + summary_loss(
            model, memory_BSD[summed], lengths_B[summed], source_BS[summed], torch.randint(16, 1000, (1, SUMMARY))
        )
        + router_loss(model, memory_BSD, lengths_B, torch.randint(0, 3, (5,)))
    )


@pytest.mark.parametrize("preset", ["nano", "student", "teacher"])
def test_the_parameter_count_is_the_networks_own(preset: str) -> None:
    config = HybridConfig.from_preset(preset)
    with torch.device("meta"):
        model = HybridModel(config)
    assert parameter_count(config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("changes", [{"d_model": 96, "encoder_ffn": 40}, {"hybrid_units": 3, "pointer_layers": 2}])
def test_the_parameter_count_follows_every_dimension(changes: dict[str, int]) -> None:
    config = HybridConfig.from_preset("nano", decoder_layers=3, vocab_size=1_234, max_positions=77, **changes)
    assert parameter_count(config) == sum(parameter.numel() for parameter in HybridModel(config).parameters())


@contextmanager
def unfused() -> Iterator[None]:
    """Attention and recurrences made of plain products."""
    torch._C._set_mkldnn_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch._C._set_mkldnn_enabled(True)


def unread_scores(config: HybridConfig) -> float:
    """Forward FLOPs of the causal scores above the diagonal, which PyTorch's unfused attention computes."""

    def half(layers: int, rows: float, size: int) -> float:
        return layers * 4 * rows * size * (size - 1) / 2 * config.d_model

    return half(config.decoder_layers, 2, TARGET) + half(config.pointer_layers, 1, SUMMARY)


def test_forward_flops_are_those_that_pytorch_counts(network: HybridModel) -> None:
    """Its counter sees no fused attention, and no fused recurrence: both run unfused here."""
    with unfused(), torch.no_grad(), FlopCounterMode(display=False) as counter:
        total_loss(network)
    assert counter.get_total_flops() == forward_flops(network.config, WORK) + unread_scores(network.config)


def test_training_flops_are_those_that_pytorch_counts(network: HybridModel) -> None:
    """All but one product: the recurrences begin with a zero state, whose gradient nobody asks for."""
    with unfused(), FlopCounterMode(display=False) as counter:
        total_loss(network).backward()
    config, units = network.config, network.config.d_model // 2
    windows = -(-SOURCE // config.recurrent_block)
    first_states = 2 * 2 * windows * units * units * (config.hybrid_units * 3 * 5 + 4 * 2)
    expected = training_flops(config, WORK) + 3 * unread_scores(config) - first_states
    assert counter.get_total_flops() == expected


def test_recomputing_adds_one_forward_pass() -> None:
    config = HybridConfig.from_preset("student")
    more = training_flops(config, WORK, recompute=True) - training_flops(config, WORK)
    assert more == forward_flops(config, WORK)
