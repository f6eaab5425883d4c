"""Products in 8-bit integers: each row of the input has a scale of its own, each channel of the weights one.

    x [..,K] ─▶ scale = max|x| / 127 ─▶ u8 [..,K] ─▶ MatMulIntegerToFloat ─▶ · scale ─▶ [..,N]
                of each row                            s8 [K,N], a scale a channel

A row's scale is its own, so batch mates have no say. What is stored stays as it is, blocks of 32 or float16: the levels
of a channel are computed from it by nodes that ONNX Runtime folds when it loads the graph.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from deploy.graphs.blockwise import NIBBLE
from deploy.graphs.builder import NONE, GraphBuilder, Value

WEIGHT_LEVEL = 63
"""Largest level of a weight: 7 bits. AVX2 without VNNI adds pairs of products in 16 bits, where 2 · 255 · 127 saturates
without a word (sums of 512 products were off by a fifth of the largest) and 2 · 255 · 63 fits. So every processor
computes the same. The eighth bit would be worth little: the spans of 128 questions of SQuAD were those of float32."""

ROW_LEVEL = 127
"""Largest level of an activation, around ROW_ZERO. Unsigned: signed against signed levels ran at an eighth of the speed
(AVX2, one thread)."""

ROW_ZERO = 128

SMALLEST_SCALE = 1e-20
"""Of a row or a channel of zeros."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Levels:
    """A stored weight as integers."""

    values: Value
    """INT8 [K,N]."""

    scales: Value
    """FP32 [N]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """An input as integers."""

    values: Value
    """UINT8 [..,K], around ROW_ZERO."""

    scales: Value
    """FP32 [..,1]."""


def levels_of_blocks(builder: GraphBuilder, values: Value, scales: Value, shape: tuple[int, int], bits: int) -> Levels:
    """From a `blockwise.Quantized`, its scales as FP32; shape is (N, K)."""
    half = 1 << (bits - 1)
    # No weight of a block is larger than its scale times half the levels.
    largest_N = builder.reduce_max(builder.op("Abs", scales)[0], 1)
    channel_N = _at_least(builder, builder.mul(largest_N, builder.constant(half / WEIGHT_LEVEL, np.float32)))
    ratio_NC = builder.div(scales, builder.unsqueeze(channel_N, 1))
    floats = builder.cast(values, TensorProto.FLOAT)
    levels_NCK = _unpacked(builder, floats) if bits == NIBBLE else floats
    centred_NCK = builder.sub(levels_NCK, builder.constant(half, np.float32))
    exact_NCK = builder.mul(centred_NCK, builder.unsqueeze(ratio_NC, 2))
    return _transposed(builder, builder.reshape(exact_NCK, *shape), channel_N)


def _unpacked(builder: GraphBuilder, bytes_NCK: Value) -> Value:
    """[N,K/32,16] of two levels a byte, the even one in its low half → [N,K/32,32]."""
    levels = builder.constant(1 << NIBBLE, np.float32)
    high = builder.op("Floor", builder.div(bytes_NCK, levels))[0]
    low = builder.sub(bytes_NCK, builder.mul(high, levels))
    pairs = builder.concat(builder.unsqueeze(low, 3), builder.unsqueeze(high, 3), axis=3)
    return builder.reshape(pairs, 0, 0, -1)


def _transposed(builder: GraphBuilder, exact_NK: Value, channel_N: Value) -> Levels:
    """Rounded, in the layout that MatMulIntegerToFloat reads."""
    one, zero = builder.constant(1, np.float32), builder.constant(0, np.int8)
    rounded_NK = builder.op("QuantizeLinear", exact_NK, one, zero)[0]
    return Levels(values=builder.transpose(rounded_NK, 1, 0), scales=channel_N)


def levels_of(builder: GraphBuilder, weight_NK: Value) -> Levels:
    """From a float32 matrix."""
    largest_N = builder.reduce_max(builder.op("Abs", weight_NK)[0], 1)
    channel_N = _at_least(builder, builder.mul(largest_N, builder.constant(1 / WEIGHT_LEVEL, np.float32)))
    return _transposed(builder, builder.div(weight_NK, builder.unsqueeze(channel_N, 1)), channel_N)


def quantise_rows(builder: GraphBuilder, value: Value) -> Rows:
    """An input [..,K], each row by its own largest magnitude."""
    largest = builder.reduce_max(builder.op("Abs", value)[0], -1, keepdims=True)
    scales = _at_least(builder, builder.mul(largest, builder.constant(1 / ROW_LEVEL, np.float32)))
    return Rows(values=_round(builder, builder.div(value, scales), 1.0), scales=scales)


def quantise_bounded(builder: GraphBuilder, value: Value, largest: float) -> Value:
    """UINT8 of an input whose magnitude is bounded: one scale, `bounded_scale`, for all rows of all batches."""
    return _round(builder, value, bounded_scale(largest))


def bounded_scale(largest: float) -> float:
    """The scale of `quantise_bounded`."""
    return largest / ROW_LEVEL


def row_product(builder: GraphBuilder, rows: Rows, levels: Levels) -> Value:
    """[..,K] · [K,N] → FP32 [..,N]."""
    return builder.mul(integer_product(builder, rows.values, levels, 1.0), rows.scales)


def integer_product(builder: GraphBuilder, values: Value, levels: Levels, scale: float, bias: Value = NONE) -> Value:
    """UINT8 [..,K] · INT8 [K,N] → FP32 [..,N], times the scales, plus a bias [N]."""
    factor, zero = builder.constant(scale, np.float32), builder.constant(ROW_ZERO, np.uint8)
    inputs = (values, levels.values, factor, levels.scales, zero, NONE, bias)
    return builder.fused("MatMulIntegerToFloat", *inputs)[0]


def _at_least(builder: GraphBuilder, scales: Value) -> Value:
    return builder.maximum(scales, builder.constant(SMALLEST_SCALE, np.float32))


def _round(builder: GraphBuilder, value: Value, scale: float) -> Value:
    zero = builder.constant(ROW_ZERO, np.uint8)
    return builder.op("QuantizeLinear", value, builder.constant(scale, np.float32), zero)[0]
