"""Gradients of attention as training computes it on a GPU: those of plain arithmetic; and what is compiled."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from model.attention import key_mask
from model.configuration import HybridConfig
from model.network import HybridModel
from training.kernels.choice import choose_kernels
from training.kernels.compiled import compile_layers
from training.layout import Layout
from training.parallel.mesh import join
from training.parallel.sequence import apply_sequence_parallel

LENGTHS = [384, 250, 97, 31]


@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("causal", [False, True], ids=["mask of the padding", "causal"])
def test_gradients_in_bfloat16_are_those_of_plain_arithmetic(causal: bool) -> None:
    choose_kernels()
    torch.manual_seed(0)
    lengths_B = torch.tensor(LENGTHS, device="cuda")
    mask = None if causal else key_mask(lengths_B, max(LENGTHS))
    queries, keys, values, upstream = torch.randn(4, len(LENGTHS), 8, max(LENGTHS), 64, device="cuda").unbind()
    inside_B1S1 = torch.arange(max(LENGTHS), device="cuda")[None, None, :, None] < lengths_B[:, None, None, None]
    upstream = upstream * inside_B1S1  # what lies behind a row's end has no loss
    exact = _gradients(queries, keys, values, upstream, mask, causal, torch.float64)
    found = _gradients(queries, keys, values, upstream, mask, causal, torch.bfloat16)
    for name, left, right in zip(("query", "key", "value"), exact, found, strict=True):
        similarity = functional.cosine_similarity(left.flatten(), right.double().flatten(), dim=0)
        assert similarity > 0.999, name


def _gradients(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    upstream: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, ...]:
    inputs = [each.to(dtype).requires_grad_() for each in (queries, keys, values)]
    mixed = functional.scaled_dot_product_attention(*inputs, attn_mask=mask, is_causal=causal)
    return torch.autograd.grad(mixed, inputs, upstream.to(dtype))


def test_what_sequence_parallelism_put_on_the_hybrid_layer_is_not_compiled() -> None:
    network = HybridModel(HybridConfig.from_preset("nano"))
    with join(Layout(), torch.device("cpu"), grouped=True):
        apply_sequence_parallel(network, None)
        compile_layers(network)
    assert network.hybrid._compiled_call_impl is None
    assert all(layer._compiled_call_impl is not None for layer in network.generative.layers)
