"""Dynamic positions: a learned table, stretched over longer rows, scaled per token by a gate."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from deploy.graphs.builder import GraphBuilder, Value
from deploy.graphs.layers import linear


def add_positions(builder: GraphBuilder, hidden_BSD: Value, lengths_B: Value, key: str) -> Value:
    """Rows [B,S,D] times √D plus gated positions; a row longer than the table is stretched over the whole of it."""
    table = builder.weight(f"{key}.table")
    last = builder.weights_of(f"{key}.table").shape[0] - 1
    tokens_S = builder.cast(builder.range(builder.size(hidden_BSD, 1)), TensorProto.FLOAT)
    lengths_B1 = builder.unsqueeze(builder.cast(lengths_B, TensorProto.FLOAT), 1)
    # (P-1)/(length-1) for rows past the table, else 1: one formula, without a branch.
    longest_B1 = builder.maximum(builder.sub(lengths_B1, _float(builder, 1)), _float(builder, last))
    step_B1 = builder.div(_float(builder, last), longest_B1)
    index_BS = builder.minimum(builder.mul(builder.unsqueeze(tokens_S, 0), step_B1), _float(builder, last))
    low_BS = builder.op("Floor", index_BS)[0]
    high_BS = builder.op("Ceil", index_BS)[0]
    part_BS1 = builder.unsqueeze(builder.sub(index_BS, low_BS), 2)
    low_BSD = builder.gather(table, builder.cast(low_BS, TensorProto.INT64))
    high_BSD = builder.gather(table, builder.cast(high_BS, TensorProto.INT64))
    position_BSD = builder.add(low_BSD, builder.mul(builder.sub(high_BSD, low_BSD), part_BS1))
    return _add_gated(builder, hidden_BSD, position_BSD, key)


def add_position_of_step(builder: GraphBuilder, hidden_B1D: Value, positions_B: Value, key: str) -> Value:
    """The embedded token [B,1,D] times √D plus the gated row of its position (INT32 [B], inside the table)."""
    indices_B1 = builder.unsqueeze(builder.cast(positions_B, TensorProto.INT64), 1)
    return _add_gated(builder, hidden_B1D, builder.gather(builder.weight(f"{key}.table"), indices_B1), key)


def _add_gated(builder: GraphBuilder, hidden_BSD: Value, position_BSD: Value, key: str) -> Value:
    gate_BS1 = builder.sigmoid(linear(builder, hidden_BSD, f"{key}.gate", bias=True))
    scale = math.sqrt(builder.weights_of(f"{key}.table").shape[1])
    return builder.add(builder.mul(hidden_BSD, _float(builder, scale)), builder.mul(gate_BS1, position_BSD))


def _float(builder: GraphBuilder, value: float) -> Value:
    return builder.constant(float(value), np.float32)
