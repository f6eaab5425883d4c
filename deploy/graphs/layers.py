"""Linear layers, layer normalisation, GELU and the feed-forward network: `model/layers.py` as nodes."""

from __future__ import annotations

import math

import numpy as np

from deploy.graphs.builder import GraphBuilder, Value

LAYER_NORM_EPSILON = 1e-5


def linear(builder: GraphBuilder, value: Value, key: str, *, bias: bool = False) -> Value:
    """`value @ weight.T (+ bias)` for the Linear module `key`."""
    product = builder.matmul(value, builder.weight(f"{key}.weight", transposed=True))
    return builder.add(product, builder.weight(f"{key}.bias")) if bias else product


def layer_norm(builder: GraphBuilder, value: Value, key: str) -> Value:
    """LayerNorm over the last axis: one operator since opset 17, its definition before."""
    scale, shift = builder.weight(f"{key}.weight"), builder.weight(f"{key}.bias")
    if builder.opset >= 17:
        return builder.op("LayerNormalization", value, scale, shift, axis=-1, epsilon=LAYER_NORM_EPSILON)[0]
    centred = builder.sub(value, builder.reduce_mean(value, -1, keepdims=True))
    variance = builder.reduce_mean(builder.op("Pow", centred, builder.constant(2.0, np.float32))[0], -1, keepdims=True)
    deviation = builder.op("Sqrt", builder.add(variance, builder.constant(LAYER_NORM_EPSILON, np.float32)))[0]
    return builder.add(builder.mul(builder.div(centred, deviation), scale), shift)


def add_norm(builder: GraphBuilder, value: Value, delta: Value, key: str) -> tuple[Value, Value]:
    """(value + delta, LayerNorm(value + delta)): the border between two pre-norm sublayers.

    Not SkipLayerNormalization: on CPU it took 0.70 ms where Add and LayerNormalization took 0.21 (512 × 512).
    """
    total = builder.add(value, delta)
    return total, layer_norm(builder, total, key)


def gelu(builder: GraphBuilder, value: Value) -> Value:
    """The exact GELU, x·Φ(x)."""
    if builder.fusion:
        return builder.fused("Gelu", value)[0]
    if builder.opset >= 20:
        return builder.op("Gelu", value)[0]
    error = builder.op("Erf", builder.div(value, builder.constant(math.sqrt(2.0), np.float32)))[0]
    probability = builder.add(error, builder.constant(1.0, np.float32))
    return builder.mul(builder.mul(value, probability), builder.constant(0.5, np.float32))


def biased_gelu(builder: GraphBuilder, value: Value, key: str) -> Value:
    """GELU(value + bias of the Linear module `key`)."""
    bias = builder.weight(f"{key}.bias")
    return builder.fused("BiasGelu", value, bias)[0] if builder.fusion else gelu(builder, builder.add(value, bias))
