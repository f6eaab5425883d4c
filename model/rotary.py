"""Rotary positions: queries and keys are turned by their place, so that their products know the distance.

Su et al. 2021, "RoFormer", 3.2.2, with the halves of a head's width as the two axes of its planes, as GPT-NeoX has it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

BASE = 10_000
"""How much slower the last plane turns than the first, which turns by one radian a token."""


def frequencies(width: int, slowest: float, device: torch.device | None = None) -> Tensor:
    """Radians a token of the planes of an even width, from 1 to nearly 1/slowest, float32 [width/2]."""
    planes = width // 2
    place_F = torch.arange(planes, dtype=torch.float64, device=device)
    return torch.exp(place_F * (-math.log(slowest) / planes)).float()


def angles(size: int, width: int, slowest: float, device: torch.device | None = None) -> Tensor:
    """Of the places 0, 1, … in every plane, float32 [size, width/2]."""
    return torch.arange(size, device=device)[:, None] * frequencies(width, slowest, device)


class Rotation(NamedTuple):
    """By what angles the places 0, 1, … of a row turn, float32 [S,1,E].

    Made once for all layers: a compiler that sees them made in a layer computes them anew for every element.
    """

    cosine_S1E: Tensor
    sine_S1E: Tensor
    """With the sign that the other axis of a plane comes with: minus in the left half."""


def make_rotation(size: int, width: int, device: torch.device | None = None) -> Rotation:
    """Of rows of `size` tokens, for heads of an even width E; F are their planes, E/2."""
    angle_S1F = angles(size, width, BASE, device)[:, None]
    cosine_S1F, sine_S1F = angle_S1F.cos(), angle_S1F.sin()
    return Rotation(torch.cat([cosine_S1F, cosine_S1F], dim=-1), torch.cat([-sine_S1F, sine_S1F], dim=-1))


def rotate(heads_BHSE: Tensor, rotation: Rotation) -> Tensor:
    """Queries or keys turned, [B,H,S,E]; in memory they lie as [B,S,H,E], as what they come from does."""
    cosine, sine = (each.to(heads_BHSE.dtype) for each in rotation)
    heads_BSHE = heads_BHSE.transpose(1, 2)
    swapped_BSHE = heads_BSHE.unflatten(-1, (2, -1)).flip(-2).flatten(-2)
    return (heads_BSHE * cosine + swapped_BSHE * sine).transpose(1, 2)
