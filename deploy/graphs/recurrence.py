"""Bidirectional GRU and LSTM over a batch of padded rows, in blocks: `model/recurrence.py` as nodes.

Every block reads a window of the sequence from a zero state, and keeps the outputs of its own tokens:

    tokens          0 ……………… block ……………… 2·block ……………… 3·block … length
    forward window            halo├── own ──┤
    backward window               ├── own ──┤halo

The forward direction's outputs do not depend on what stands to the right, nor the backward ones on what stands to the
left, so each direction gets half a window's halo less work than the window of both, for equal results.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto

from deploy.graphs.builder import GraphBuilder, Value

GATES = {"GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
"""PyTorch's gate behind each of ONNX's: GRU r,z,n → z,r,n; LSTM i,f,g,o → i,o,f,g."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Blocks:
    """How a recurrence is cut; `block=None` runs it over the whole row."""

    block: int | None
    halo: int


def bidirectional(
    builder: GraphBuilder, kind: str, hidden_BSD: Value, lengths_B: Value, key: str, *, width: int, blocks: Blocks
) -> Value:
    """[B,S,D] → [B,S,2·units] of the module `key`; rows are read up to their length (INT32 [B]), outputs past it are 0.

    Args:
        builder: the graph.
        kind: "GRU" or "LSTM".
        hidden_BSD: input rows.
        lengths_B: valid tokens of each row.
        key: the module in the state dict, with parameters named as nn.GRU names them.
        width: D.
        blocks: the cut.
    """
    hidden_SBD = builder.transpose(hidden_BSD, 1, 0, 2)
    directions = []
    for direction in ("forward", "reverse"):
        if blocks.block is None:
            directions.append(_recur(builder, kind, hidden_SBD, lengths_B, key, direction))
        else:
            directions.append(_blocked(builder, kind, hidden_SBD, lengths_B, key, direction, width, blocks))
    return builder.transpose(builder.concat(*directions, axis=2), 1, 0, 2)


def _blocked(
    builder: GraphBuilder,
    kind: str,
    hidden_SBD: Value,
    lengths_B: Value,
    key: str,
    direction: str,
    width: int,
    blocks: Blocks,
) -> Value:
    """One direction: gather the windows to [W,N·B,D], recur, gather the blocks' own tokens back to [S,B,units]."""
    assert blocks.block is not None
    block, halo = builder.ints(blocks.block), builder.ints(blocks.halo)
    size, batch = builder.size(hidden_SBD, 0), builder.size(hidden_SBD, 1)
    zero, one = builder.ints(0), builder.ints(1)
    tokens_S = builder.range(size)
    count = builder.div(builder.sub(builder.add(size, block), one), block)
    own_N = builder.mul(builder.range(count), block)
    window = builder.minimum(builder.ints(blocks.block + blocks.halo), size)

    before_N = builder.maximum(builder.sub(own_N, halo), zero) if direction == "forward" else own_N
    after_N = builder.add(own_N, block if direction == "forward" else builder.add(block, halo))
    steps_W1 = builder.unsqueeze(builder.range(window), 1)
    sources_WN = builder.minimum(builder.add(steps_W1, before_N), builder.sub(size, one))
    windows_WNBD = builder.gather(hidden_SBD, sources_WN)
    windows_WMD = builder.reshape(windows_WNBD, window, builder.ints(-1), width)

    lengths_1B = builder.unsqueeze(builder.cast(lengths_B, TensorProto.INT64), 0)
    ends_NB = builder.minimum(lengths_1B, builder.unsqueeze(after_N, 1))
    windows_NB = builder.maximum(builder.sub(ends_NB, builder.unsqueeze(before_N, 1)), zero)
    lengths_M = builder.cast(builder.reshape(windows_NB, -1), TensorProto.INT32)

    states_WMU = _recur(builder, kind, windows_WMD, lengths_M, key, direction)
    units = builder.weights_of(f"{key}.weight_hh_l0").shape[1]
    states_PBU = builder.reshape(states_WMU, builder.ints(-1), batch, units)
    block_S = builder.div(tokens_S, block)
    step_S = builder.sub(tokens_S, builder.gather(before_N, block_S))
    return builder.gather(states_PBU, builder.add(builder.mul(step_S, count), block_S))


def _recur(builder: GraphBuilder, kind: str, hidden_SBD: Value, lengths_B: Value, key: str, direction: str) -> Value:
    """One direction over whole rows, [S,B,D] → [S,B,units]."""
    units = builder.weights_of(f"{key}.weight_hh_l0").shape[1]
    weights, recurrent, bias = recurrent_weights(builder, kind, key, direction)
    attributes: dict[str, Any] = {"linear_before_reset": 1} if kind == "GRU" else {}
    states_S1BU = builder.op(
        kind, hidden_SBD, weights, recurrent, bias, lengths_B, hidden_size=units, direction=direction, **attributes
    )[0]
    return builder.squeeze(states_S1BU, 1)


def recurrent_weights(builder: GraphBuilder, kind: str, key: str, direction: str) -> tuple[Value, Value, Value]:
    """W [1,G·U,D], R [1,G·U,U] and B [1,2·G·U] of one direction, in ONNX's gate order."""
    suffix = "l0" if direction == "forward" else "l0_reverse"
    stored = {
        part: reorder_gates(builder.weights_of(f"{key}.{part}_{suffix}"), GATES[kind])
        for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    }
    return (
        builder.initializer(f"{key}.weight_ih_{suffix}.{kind}", stored["weight_ih"][None]),
        builder.initializer(f"{key}.weight_hh_{suffix}.{kind}", stored["weight_hh"][None]),
        builder.initializer(
            f"{key}.bias_{suffix}.{kind}", np.concatenate([stored["bias_ih"], stored["bias_hh"]])[None]
        ),
    )


def reorder_gates(stacked: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Put the gates, stacked along the first axis, into another order."""
    gates = np.split(stacked, len(order))
    return np.concatenate([gates[index] for index in order])
