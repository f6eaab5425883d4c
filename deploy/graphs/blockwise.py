"""Weights in blocks of 32 with one scale each: the storage that MatMulNBits and GatherBlockQuantized read.

A weight is scale · (q - zero), zero = 2^(bits-1). Scales are stored in float16; values are rounded against the stored
scale, so that what is dequantised is exactly what the kernels compute with. Blocks of 128 let batch mates change greedy
texts; blocks of 32 did not (32 of 32 texts kept).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BLOCK = 32
NIBBLE = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantized:
    """A matrix [N,K] in blocks along K."""

    values: np.ndarray
    """UINT8 [N, K/32, 32·bits/8]; of 4 bits, the even element stands in the low half of a byte."""

    scales: np.ndarray
    """FP16 [N, K/32]."""

    bits: int


def quantize(weight_NK: np.ndarray, bits: int) -> Quantized:
    """Quantise a float32 matrix whose K is a multiple of 32, to 8 or 4 bits."""
    rows, width = weight_NK.shape
    blocks = weight_NK.astype(np.float32).reshape(rows, width // BLOCK, BLOCK)
    values, scales = _round_to(blocks, _eight_bit_scales(blocks), 8) if bits == 8 else _four_bit(blocks)
    if bits == NIBBLE:
        values = values[..., 0::2] | (values[..., 1::2] << NIBBLE)
    return Quantized(values=values, scales=scales, bits=bits)


def dequantize(stored: Quantized) -> np.ndarray:
    """The float32 matrix [N,K] that `stored` stands for, exactly."""
    values = stored.values
    if stored.bits == NIBBLE:
        values = np.stack([values & 0xF, values >> NIBBLE], axis=-1).reshape(*values.shape[:-1], -1)
    centred = values.astype(np.float32) - np.float32(1 << (stored.bits - 1))
    return (centred * stored.scales.astype(np.float32)[..., None]).reshape(values.shape[0], -1)


def _eight_bit_scales(blocks: np.ndarray) -> np.ndarray:
    return np.abs(blocks).max(-1) / 127


def _four_bit(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best of several scales a block, by squared error: 16 levels are too few to waste on one outlier.

    The element of largest magnitude falls on -8, the level that has no positive twin, or is clipped a little.
    """
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(-1)[..., None], -1)[..., 0]
    best_error = np.full(extreme.shape, np.inf, np.float32)
    best_values = np.zeros(blocks.shape, np.uint8)
    best_scales = np.zeros(extreme.shape, np.float16)
    for clip in (1.0, 0.95, 0.9, 0.85, 0.8):
        values, scales = _round_to(blocks, -extreme * clip / 8, NIBBLE)
        restored = (values.astype(np.float32) - 8) * scales.astype(np.float32)[..., None]
        error = np.square(restored - blocks).sum(-1)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scales = np.where(better, scales, best_scales)
        best_values = np.where(better[..., None], values, best_values)
    return best_values, best_scales


def _round_to(blocks: np.ndarray, scales: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Nearest levels for the scales as float16 stores them; a block whose scale vanishes becomes zero."""
    stored = scales.astype(np.float16)
    divisor = np.where(stored == 0, np.float32(np.inf), stored.astype(np.float32))
    zero = 1 << (bits - 1)
    levels = np.rint(blocks / divisor[..., None]) + zero
    return np.clip(levels, 0, 2 * zero - 1).astype(np.uint8), stored
