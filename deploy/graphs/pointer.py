"""The pointer head: a copy distribution over the source, mixed with the vocabulary's by a learned gate."""

from __future__ import annotations

import functools

import numpy as np
from onnx import TensorProto

from deploy.graphs.attention import is_token, split_heads
from deploy.graphs.builder import GraphBuilder, Value
from deploy.graphs.decoders import Decoder, StepLengths
from deploy.graphs.heads import tied_logits
from deploy.graphs.layers import linear

SMALLEST_OPSET = 16
"""ScatterElements adds up equal indices since opset 16."""

FLOOR = 1e-9
"""Added to the mixture before its logarithm."""


def check_opset(opset: int) -> None:
    """Raises ValueError where the opset cannot express the copy distribution."""
    if opset < SMALLEST_OPSET:
        raise ValueError(
            f"opset {opset} has no ScatterElements(reduction=add), which the pointer's copy distribution needs: "
            f"use --opset {SMALLEST_OPSET} or more"
        )


def build_copy_keys(builder: GraphBuilder, decoder: Decoder, memory_BSD: Value) -> None:
    """Declare the source's copy keys as outputs, each [B,K,S,E] like the caches, where the engine keeps them."""
    keys_BSD = linear(builder, memory_BSD, "pointer.copy_key")
    names = decoder.copy_names
    for name, part in zip(names, builder.split(keys_BSD, [decoder.kv_width] * len(names)), strict=True):
        keys_BKSE = split_heads(builder, part, decoder.kv_heads, decoder.kv_width)
        builder.output(name, keys_BKSE, TensorProto.FLOAT, decoder.cache_shape("source"))


def mixture(builder: GraphBuilder, decoder: Decoder, state_B1D: Value, lengths: StepLengths) -> Value:
    """Log probabilities [B,V] of the next token; declares the copy keys and `source_ids` as inputs."""
    shape, names = decoder.cache_shape("max_source"), decoder.copy_names
    parts = [builder.input(name, TensorProto.FLOAT, shape) for name in names]
    ids = builder.input("source_ids", TensorProto.INT64, ["batch", "max_source"])
    # Only the part of the buffers that some row uses is read. Scores are sums over heads of products per head, which
    # spares a transposed copy of the keys.
    size = builder.reshape(builder.cast(lengths.longest_source, TensorProto.INT64), 1)
    ids_BS = builder.slice(ids, builder.ints(0), size, 1)

    query_B1D = linear(builder, state_B1D, "pointer.copy_query")
    products = []
    for keys, query in zip(parts, builder.split(query_B1D, [decoder.kv_width] * len(parts)), strict=True):
        keys_BKSE = builder.slice(keys, builder.ints(0), size, 2)
        query_BKE1 = builder.reshape(query, 0, decoder.kv_heads, decoder.width // decoder.heads, 1)
        products.append(builder.reduce_sum(builder.matmul(keys_BKSE, query_BKE1), 1, 3))
    products_BS = functools.reduce(builder.add, products)
    scores_BS = builder.mul(products_BS, builder.constant(decoder.width**-0.5, np.float32))
    inside_BS = is_token(builder, lengths.source, size)
    copy_BS = builder.softmax(builder.where(inside_BS, scores_BS, builder.constant(-np.inf, np.float32)))

    # softmax([x, 0]) is (sigmoid(x), 1 - sigmoid(x)). ONNX Runtime's Sigmoid is off by up to 1e-9, and 1 - sigmoid(x)
    # keeps no digit near 1: both would show in the logarithm of small probabilities.
    score_B1 = builder.squeeze(linear(builder, state_B1D, "pointer.gate", bias=True), 1)
    gates_B2 = builder.softmax(builder.concat(score_B1, builder.sub(score_B1, score_B1), axis=1))
    generate_B1, copy_B1 = builder.split(gates_B2, [1, 1])
    generated_BV = builder.mul(builder.softmax(tied_logits(builder, state_B1D, decoder.width)), generate_B1)
    copied_BS = builder.mul(copy_BS, copy_B1)
    mixed_BV = builder.op("ScatterElements", generated_BV, ids_BS, copied_BS, axis=1, reduction="add")[0]
    return builder.op("Log", builder.add(mixed_BV, builder.constant(FLOOR, np.float32)))[0]
