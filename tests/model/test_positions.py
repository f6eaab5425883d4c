"""Positions inside the table, and rows it is stretched over."""

from __future__ import annotations

import pytest
import torch

from model.positions import RMS, DynamicPositions

TABLE, WIDTH = 8, 6


@pytest.fixture
def positions() -> DynamicPositions:
    torch.manual_seed(2)
    return DynamicPositions(TABLE, WIDTH)


def added(positions: DynamicPositions, embedded: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
    """The table's rows as they were read: what was added, without the gate."""
    return (positions(embedded, lengths) - embedded * WIDTH**0.5) / torch.sigmoid(positions.gate(embedded))


def test_the_table_begins_as_sinusoids_in_which_a_distance_looks_alike_everywhere() -> None:
    table = DynamicPositions(512, 64).table.detach()
    assert float(table.square().mean().sqrt()) == pytest.approx(RMS, rel=1e-5)
    likeness = table @ table.T
    for distance in (0, 1, 2, 5, 50):
        diagonal = likeness.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=1e-4)
    assert likeness[100, 100] > likeness[100, 101] > likeness[100, 102] > likeness[100, 150]


@torch.no_grad()
def test_a_row_that_fits_reads_the_table_plainly(positions: DynamicPositions) -> None:
    embedded = torch.randn(2, 5, WIDTH)
    torch.testing.assert_close(added(positions, embedded), positions.table[:5].expand(2, -1, -1), atol=1e-6, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("length", [9, 15, 22, 100])
def test_a_longer_row_is_stretched_over_the_table(positions: DynamicPositions, length: int) -> None:
    rows = added(positions, torch.randn(1, length, WIDTH), torch.tensor([length]))[0]
    for place in range(length):
        index = place * (TABLE - 1) / (length - 1)
        low = min(int(index + 1e-6), TABLE - 2)
        expected = torch.lerp(positions.table[low], positions.table[low + 1], index - low)
        torch.testing.assert_close(rows[place], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_short_row_beside_a_longer_one_reads_plainly(positions: DynamicPositions) -> None:
    embedded = torch.randn(2, 20, WIDTH)
    together = positions(embedded, torch.tensor([20, 6]))
    torch.testing.assert_close(together[1, :6], positions(embedded[1:, :6])[0])
    torch.testing.assert_close(together[0], positions(embedded[:1])[0])


@torch.no_grad()
def test_the_gate_scales_each_tokens_position(positions: DynamicPositions) -> None:
    embedded = torch.randn(1, 4, WIDTH)
    positions.gate.bias.fill_(-50)
    torch.testing.assert_close(positions(embedded), embedded * WIDTH**0.5)
    positions.gate.bias.fill_(50)
    torch.testing.assert_close(positions(embedded), embedded * WIDTH**0.5 + positions.table[:4])
    torch.testing.assert_close(positions.at(embedded[:, 2:3], 2), positions(embedded)[:, 2:3])
