"""Which parameters Muon takes, how gradients are clipped, and what a saved state restores."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from model.configuration import HybridConfig
from model.network import HybridModel
from training.config import OptimizerSection
from training.optimizer import Optimizers, split_parameters
from training.stacks import split_stack, stacked_matrices


@pytest.fixture(scope="module")
def network() -> HybridModel:
    torch.manual_seed(0)
    return HybridModel(HybridConfig.from_preset("nano"))


def test_muon_takes_no_embedding_position_norm_or_bias(network: HybridModel) -> None:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    matrices, others = ([names[id(each)] for each in part] for part in split_parameters(network))
    assert sorted(matrices + others) == sorted(names.values())
    assert not [name for name in matrices if any(no in name for no in ("embedding", "position", "norm", "bias", "crf"))]
    assert {"encoder.layers.0.attention.qkv.weight", "generative.layers.1.feed_forward.up.weight"} <= set(matrices)
    assert {"hybrid.units.0.recurrence.weight_hh_l0", "pointer.copy_query.weight"} <= set(matrices)
    assert {"embedding.weight", "encoder.positions.table", "router.output.weight", "hybrid.mix"} <= set(others)


def test_queries_keys_values_and_gates_are_matrices_of_their_own(network: HybridModel) -> None:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = {names[id(parameter)]: count for parameter, count in stacked_matrices(network).items()}
    assert found["encoder.layers.0.attention.qkv.weight"] == 3
    assert found["pointer.layers.0.cross_attention.kv.weight"] == 2
    assert found["hybrid.units.1.recurrence.weight_hh_l0_reverse"] == 3
    assert found["extractive.recurrence.weight_ih_l0"] == 4
    assert not [name for name in found if "bias" in name or "feed_forward" in name or "out" in name]


def test_queries_of_grouped_heads_are_a_larger_matrix_than_their_keys(network: HybridModel) -> None:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    config = network.config
    for parameter, stack in stacked_matrices(network).items():
        if names[id(parameter)] == "generative.layers.0.self_attention.qkv.weight":
            kv_width = config.d_model // config.num_heads * config.num_kv_heads
            assert [len(each) for each in split_stack(parameter, stack)] == [config.d_model, kv_width, kv_width]


def test_what_needs_no_gradient_is_left_out() -> None:
    layer = nn.Linear(32, 32)
    layer.weight.requires_grad_(False)
    matrices, others = split_parameters(layer)
    assert (matrices, others) == ([], [layer.bias])


def test_every_tensor_is_clipped_by_itself() -> None:
    layers = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32))
    optimizers = Optimizers(layers, OptimizerSection(clip=1.0), fused=False)
    seen: list[float] = []
    for parameter in layers.parameters():
        parameter.grad = torch.full_like(parameter, 100.0 if parameter.ndim == 1 else 1e-3)
    small = layers[0].weight.grad
    large = layers[0].bias.grad
    assert small is not None
    assert large is not None
    norm = optimizers.step(0.0)
    seen += [float(small.norm()), float(large.norm())]
    assert seen == pytest.approx([32e-3, 1.0], rel=1e-4)
    assert float(norm) == pytest.approx((2 * 32 * 100.0**2 + 2 * 0.032**2) ** 0.5, rel=1e-4)
    assert all(parameter.grad is None for parameter in layers.parameters())


def test_the_factor_scales_both_learning_rates() -> None:
    layer = nn.Linear(32, 32)
    section = OptimizerSection(matrix_learning_rate=0.4, learning_rate=0.2)
    optimizers = Optimizers(layer, section, fused=False)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    for factor, moves in ((0.0, False), (0.5, True)):
        for parameter in layer.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizers.step(factor)
        rates = [group["lr"] for optimizer in optimizers.optimizers for group in optimizer.param_groups]
        assert rates == pytest.approx([0.4 * factor, 0.2 * factor, 0.2 * factor])
        assert [not torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True)] == [moves, moves]


def test_biases_and_norms_do_not_decay(network: HybridModel) -> None:
    groups = Optimizers(network, OptimizerSection(), fused=False).optimizers[-1].param_groups
    assert [group["weight_decay"] for group in groups] == [0.01, 0.0]
    assert all(parameter.ndim < 2 for parameter in groups[1]["params"])


def test_a_restored_state_goes_on_alike() -> None:
    def step(layer: nn.Linear, optimizers: Optimizers, seed: int) -> None:
        chance = torch.Generator().manual_seed(seed)
        for parameter in layer.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=chance)
        optimizers.step(1.0)

    torch.manual_seed(0)
    layer = nn.Linear(32, 32)
    optimizers = Optimizers(layer, OptimizerSection(), fused=False)
    step(layer, optimizers, 1)
    other = nn.Linear(32, 32)
    other.load_state_dict(layer.state_dict())
    resumed, fresh = (Optimizers(other, OptimizerSection(), fused=False) for _ in range(2))
    names = dict(zip(layer.parameters(), other.parameters(), strict=True))
    resumed.restore({names[parameter]: copy.deepcopy(state) for parameter, state in optimizers.kept().items()})
    step(layer, optimizers, 2)
    weights = [parameter.detach().clone() for parameter in other.parameters()]
    step(other, resumed, 2)
    assert all(torch.equal(a, b) for a, b in zip(layer.parameters(), other.parameters(), strict=True))
    for parameter, before in zip(other.parameters(), weights, strict=True):
        parameter.data.copy_(before)
    step(other, fresh, 2)
    assert not torch.equal(layer.weight, other.weight)
