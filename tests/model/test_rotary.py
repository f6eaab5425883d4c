"""Rotary positions, against the definition in complex numbers."""

from __future__ import annotations

import pytest
import torch

from model.rotary import BASE, angles, frequencies, make_rotation, rotate

ROWS, HEADS, SIZE, WIDTH = 2, 3, 40, 8


@pytest.fixture
def heads() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(ROWS, SIZE, HEADS, WIDTH).transpose(1, 2)


def test_planes_turn_by_their_frequency_times_the_place(heads: torch.Tensor) -> None:
    turned = rotate(heads, make_rotation(SIZE, WIDTH))
    angle = angles(SIZE, WIDTH, BASE)
    expected = torch.complex(*heads.chunk(2, -1)) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(turned, torch.cat([expected.real, expected.imag], -1))


def test_a_product_depends_on_the_distance_alone(heads: torch.Tensor) -> None:
    same = heads[:, :, :1].expand_as(heads)
    rotation = make_rotation(SIZE, WIDTH)
    products = rotate(same, rotation) @ rotate(same.flip(0), rotation).mT
    for distance in (-7, 0, 3):
        diagonal = products.diagonal(distance, -2, -1)
        torch.testing.assert_close(diagonal, diagonal[..., :1].expand_as(diagonal), atol=1e-5, rtol=1e-4)
    assert (products[..., 0, 0] - products[..., 0, 3]).abs().min() > 1e-2


def test_what_is_turned_lies_as_what_it_comes_from(heads: torch.Tensor) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        turned = rotate(heads.to(dtype), make_rotation(SIZE, WIDTH))
        assert turned.transpose(1, 2).is_contiguous()
        assert turned.dtype is dtype


def test_frequencies_fall_from_one_radian_a_token_to_nearly_a_ten_thousandth() -> None:
    found = frequencies(64, BASE)
    assert found[0] == 1
    assert found[-1] == pytest.approx(10_000 ** (-31 / 32), rel=1e-6)
    assert found.dtype is torch.float32
