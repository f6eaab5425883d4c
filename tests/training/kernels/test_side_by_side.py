"""GRUs side by side: states and gradients of PyTorch's own. Without a GPU, Triton's interpreter runs the kernels."""

from __future__ import annotations

import importlib
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from model.configuration import HybridConfig
from model.network import HybridModel

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")


@pytest.fixture(scope="module")
def side_by_side() -> ModuleType:
    pytest.importorskip("triton")
    with pytest.MonkeyPatch.context() as patch:
        if not GPU:
            patch.setenv("TRITON_INTERPRET", "1")  # read where a kernel is defined
        return importlib.import_module("training.kernels.side_by_side")


def recur_together(side_by_side: ModuleType, recurrences: list[nn.GRU], inputs: list[Tensor]) -> Tensor:
    """States [N,W,M,U] of one-directional GRUs on [W,M,D] each."""
    units = recurrences[0].hidden_size
    gates = [nn.functional.linear(read, one.weight_ih_l0) for one, read in zip(recurrences, inputs, strict=True)]
    weights = torch.stack([one.weight_hh_l0 for one in recurrences])
    inner = torch.stack([one.bias_hh_l0[2 * units :] for one in recurrences])
    outer = torch.stack([one.bias_ih_l0 + one.bias_hh_l0 for one in recurrences])
    outer = outer - nn.functional.pad(inner, (2 * units, 0))
    return side_by_side.recur_together(torch.stack(gates), weights, outer, inner)


@pytest.mark.parametrize(
    ("count", "steps", "rows", "units"), [(3, 7, 70, 64), (2, 1, 5, 32), (1, 4, 64, 128), (2, 3, 1, 96)]
)
def test_states_and_gradients_are_those_of_the_library(
    side_by_side: ModuleType, count: int, steps: int, rows: int, units: int
) -> None:
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    recurrences = [nn.GRU(16, units).to(DEVICE) for _ in range(count)]
    inputs = [torch.randn(steps, rows, 16, device=DEVICE, requires_grad=True) for _ in range(count)]
    upstream = torch.randn(count, steps, rows, units, device=DEVICE)
    leaves = [*inputs, *(each for one in recurrences for each in one.parameters())]
    expected = torch.stack([one(read)[0] for one, read in zip(recurrences, inputs, strict=True)])
    found = recur_together(side_by_side, recurrences, inputs)
    # A GPU multiplies float32 as TF32.
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if GPU else {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(found, expected, **tolerance)
    wanted = torch.autograd.grad(expected, leaves, upstream)
    for one, other in zip(torch.autograd.grad(found, leaves, upstream), wanted, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("compiled", [False, True], ids=["as it is", "compiled"])
@pytest.mark.parametrize("lengths", [[53, 20, 1, 17], [9, 3, 1, 8], [16, 16, 16, 16], None], ids=str)
def test_a_network_computes_what_it_did(side_by_side: ModuleType, lengths: list[int] | None, compiled: bool) -> None:
    torch.manual_seed(0)
    network = HybridModel(HybridConfig.from_preset("nano", dropout=0.0)).to(DEVICE)
    size = max(lengths or [40])
    source = torch.randint(20, 1000, (4, size), device=DEVICE)
    lengths_B = None if lengths is None else torch.tensor(lengths, device=DEVICE)
    inside = torch.arange(size, device=DEVICE) < torch.tensor(lengths or [size] * 4, device=DEVICE)[:, None]
    upstream = torch.randn(4, size, network.config.d_model, device=DEVICE) * inside[..., None]
    parameters = [*network.encoder.parameters(), *network.hybrid.parameters()]
    before = network.encode(source, lengths_B)
    wanted = torch.autograd.grad(before, parameters, upstream)
    side_by_side.run_units_together(network)
    if compiled:
        torch._dynamo.reset()  # the graphs of other cases count against a limit
        vars(network.hybrid)["forward"].compile(backend="aot_eager", fullgraph=True, dynamic=False)
    after = network.encode(source, lengths_B)
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if GPU else {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(after[inside], before[inside], **tolerance)
    for one, other in zip(torch.autograd.grad(after, parameters, upstream), wanted, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


def test_a_width_that_does_not_fall_into_tiles_stays_with_the_library(side_by_side: ModuleType) -> None:
    network = HybridModel(HybridConfig.from_preset("nano", d_model=80))
    side_by_side.run_units_together(network)
    assert "forward" not in vars(network.hybrid)


@pytest.mark.slow
@pytest.mark.skipif(not GPU, reason="needs a GPU")
def test_bfloat16_is_as_near_to_exact_as_cudnn(side_by_side: ModuleType) -> None:
    torch.manual_seed(0)
    network = HybridModel(HybridConfig.from_preset("student", dropout=0.0)).cuda()
    source = torch.randint(20, 30_000, (16, 384), device="cuda")
    lengths_B = torch.randint(40, 385, (16,), device="cuda")
    inside_BS1 = (torch.arange(384, device="cuda") < lengths_B[:, None])[..., None]
    upstream = torch.randn(16, 384, network.config.d_model, device="cuda") * inside_BS1
    parameters = list(network.hybrid.parameters())

    def gradients(enabled: bool) -> list[Tensor]:
        with torch.autocast("cuda", torch.bfloat16, enabled=enabled):
            memory = network.encode(source, lengths_B)
        return [each.double() for each in torch.autograd.grad(memory, parameters, upstream.to(memory.dtype))]

    exact, cudnn = gradients(enabled=False), gradients(enabled=True)
    side_by_side.run_units_together(network)
    ours = gradients(enabled=True)
    for true, one, other in zip(exact, ours, cudnn, strict=True):
        assert (one - true).norm() <= 1.5 * (other - true).norm() + 1e-3 * true.norm()
