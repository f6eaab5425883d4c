"""Block recurrence: the exact one where a block holds the row, and its windows by brute force."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.recurrence import BidirectionalRecurrence

WIDTH, UNITS, BLOCK = 6, 5, 4


def pair(kind: str, block: int | None, halo: int) -> tuple[BidirectionalRecurrence, nn.RNNBase]:
    """The module, and PyTorch's own with equal weights."""
    torch.manual_seed(1)
    module = BidirectionalRecurrence(kind, WIDTH, UNITS, block=block, halo=halo)
    library = getattr(nn, kind)(WIDTH, UNITS, batch_first=True, bidirectional=True)
    library.load_state_dict(module.state_dict())
    return module, library


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("block", [None, 9, 50])
def test_a_block_that_holds_the_row_is_the_exact_recurrence(kind: str, block: int | None) -> None:
    module, library = pair(kind, block, halo=3)
    lengths = torch.tensor([9, 1, 5])
    hidden = torch.randn(3, 9, WIDTH)
    found = module(hidden, lengths)
    for row, length in enumerate(lengths):
        expected = library(hidden[row : row + 1, :length])[0][0]
        torch.testing.assert_close(found[row, :length], expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(module(hidden), library(hidden)[0], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
@pytest.mark.parametrize("halo", [0, 1, 3, BLOCK])
def test_a_block_reads_its_window_and_nothing_else(kind: str, halo: int) -> None:
    """Block b reads [b·block - halo, b·block + block + halo), cut to the row, from zero states."""
    module, library = pair(kind, BLOCK, halo)
    lengths = torch.arange(1, 23)
    hidden = torch.randn(len(lengths), int(lengths.max()), WIDTH)
    found = module(hidden, lengths)
    for row, length in enumerate(lengths.tolist()):
        for begin in range(0, length, BLOCK):
            left, right = max(0, begin - halo), min(length, begin + BLOCK + halo)
            end = min(length, begin + BLOCK)
            window = library(hidden[row : row + 1, left:right])[0][0]
            expected = window[begin - left : end - left]
            torch.testing.assert_close(found[row, begin:end], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_gradients_are_the_librarys(kind: str) -> None:
    module, library = pair(kind, None, halo=0)
    hidden = torch.randn(2, 7, WIDTH, requires_grad=True)
    again = hidden.detach().clone().requires_grad_()
    module(hidden).square().sum().backward()
    library(again)[0].square().sum().backward()
    torch.testing.assert_close(hidden.grad, again.grad)
    expected = dict(library.named_parameters())
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad)


def test_padding_has_no_gradient() -> None:
    module, _ = pair("GRU", BLOCK, halo=2)
    hidden = torch.randn(2, 11, WIDTH, requires_grad=True)
    found = module(hidden, torch.tensor([11, 6]))
    found[1, :6].sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad[1, 6:].any()
    assert hidden.grad[1, :6].all()
