"""Muon: torch's update on stacks of matrices, and its refusals."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from training.muon import Muon, orthogonalise

SHAPES = ((64, 64), (192, 64), (64, 192), (64, 64), (16, 128), (192, 64))


def parameters(shapes: Sequence[tuple[int, int]]) -> list[nn.Parameter]:
    chance = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=chance)) for shape in shapes]


def run(optimizer: torch.optim.Optimizer, matrices: list[nn.Parameter], steps: int) -> list[Tensor]:
    chance = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for matrix in matrices:
            matrix.grad = torch.randn(matrix.shape, generator=chance) * 3
        optimizer.step()
    return [matrix.detach() for matrix in matrices]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_several_steps_equal_torchs_on_every_shape(weight_decay: float) -> None:
    ours, theirs = parameters(SHAPES), parameters(SHAPES)
    options = {"lr": 0.02, "weight_decay": weight_decay, "momentum": 0.95}
    found = run(Muon(ours, **options), ours, 6)
    expected = run(torch.optim.Muon(theirs, adjust_lr_fn="match_rms_adamw", **options), theirs, 6)
    for start, one, other in zip(parameters(SHAPES), found, expected, strict=True):
        assert (one - start).abs().max() > 0.01
        # Equal bit for bit where a stack's product rounds like a matrix'; bfloat16 allows no more than this.
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def test_a_single_matrix_of_a_shape_equals_torchs_bit_for_bit() -> None:
    shapes = ((64, 64), (192, 64), (64, 192))
    ours, theirs = parameters(shapes), parameters(shapes)
    found = run(Muon(ours, lr=0.02), ours, 6)
    expected = run(torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"), theirs, 6)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize(("rows", "count"), [(192, 3), (128, 2), (256, 4)])
def test_stacked_matrices_are_updated_as_if_they_were_apart(rows: int, count: int) -> None:
    (stacked,) = parameters([(rows, 64)])
    apart = [nn.Parameter(part.detach().clone()) for part in stacked.chunk(count)]
    one, other = Muon([stacked], stacked={stacked: count}, lr=0.02), Muon(apart, lr=0.02)
    chance = torch.Generator().manual_seed(2)
    for _ in range(4):
        stacked.grad = torch.randn(stacked.shape, generator=chance) * torch.linspace(0.01, 1, rows)[:, None]
        for matrix, part in zip(apart, stacked.grad.chunk(count), strict=True):
            matrix.grad = part.clone()
        one.step()
        other.step()
    assert torch.equal(stacked.detach(), torch.cat([matrix.detach() for matrix in apart]))


def test_rows_that_are_no_equal_matrices_are_refused() -> None:
    (matrix,) = parameters([(64, 64)])
    with pytest.raises(ValueError, match="64 rows are not 3 equal matrices"):
        Muon([matrix], stacked={matrix: 3}, lr=0.1)


def test_a_matrix_without_a_gradient_stays() -> None:
    first, second = parameters(((32, 32), (32, 32)))
    before = second.detach().clone()
    first.grad = torch.ones_like(first)
    Muon([first, second], lr=0.1, weight_decay=0.5).step()
    assert torch.equal(second, before)


@pytest.mark.parametrize("shape", [(32, 32), (96, 32), (32, 96)])
def test_an_orthogonalised_matrix_has_singular_values_about_one(shape: tuple[int, int]) -> None:
    stack = torch.randn(3, *shape, generator=torch.Generator().manual_seed(4))
    values = torch.linalg.svdvals(orthogonalise(stack).float())
    assert ((values > 0.4) & (values < 1.4)).all()
    assert torch.isfinite(orthogonalise(torch.zeros(1, *shape))).all()


@pytest.mark.parametrize("shape", [(8,), (2, 3, 4)])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="Muon takes matrices, got a parameter of shape"):
        Muon([nn.Parameter(torch.zeros(shape))], lr=0.1)
