"""From token ids to the memory that every head reads: embedding, encoder layers, hybrid units; and the router."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from deploy.graphs.attention import Positions, is_token, self_attention, source_positions
from deploy.graphs.builder import GraphBuilder, Value
from deploy.graphs.layers import add_norm, biased_gelu, gelu, layer_norm, linear
from deploy.graphs.positions import add_positions
from deploy.graphs.recurrence import Blocks, bidirectional

if TYPE_CHECKING:
    from model.configuration import HybridConfig

EMBEDDING = "embedding.weight"


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """The encoder's result."""

    hidden: Value
    """FP32 [B,S,D]."""

    lengths: Value
    """INT32 [B]."""


def lengths_of(builder: GraphBuilder, ids_BS: Value, pad: int) -> Value:
    """INT32 [B]: what stands before a row's trailing pads, at least 1."""
    filled_BS = builder.op("Not", builder.op("Equal", ids_BS, builder.constant(pad, np.int64))[0])[0]
    place_S = builder.add(builder.range(builder.size(ids_BS, 1)), builder.constant(1, np.int64))
    ends_BS = builder.mul(builder.cast(filled_BS, TensorProto.INT64), builder.unsqueeze(place_S, 0))
    length_B = builder.reduce_max(ends_BS, 1)
    return builder.cast(builder.maximum(length_B, builder.constant(1, np.int64)), TensorProto.INT32)


def encode(builder: GraphBuilder, config: HybridConfig, ids_BS: Value, lengths_B: Value) -> Memory:
    """Token ids [B,S] to memory [B,S,D]."""
    positions = source_positions(builder, lengths_B, builder.size(ids_BS, 1), config.d_model // config.num_heads)
    embedded_BSD = builder.gather(builder.weight(EMBEDDING), ids_BS)
    hidden_BSD = add_positions(builder, embedded_BSD, lengths_B, "encoder.positions")
    normed_BSD = layer_norm(builder, hidden_BSD, "encoder.layers.0.attention_norm")
    for index in range(config.encoder_layers):
        key = f"encoder.layers.{index}"
        last = index == config.encoder_layers - 1
        following = "encoder.norm" if last else f"encoder.layers.{index + 1}.attention_norm"
        mixed_BSD = self_attention(builder, normed_BSD, positions, f"{key}.attention", heads=config.num_heads)
        hidden_BSD, normed_BSD = add_norm(builder, hidden_BSD, mixed_BSD, f"{key}.feed_forward_norm")
        fed_BSD = feed_forward(builder, normed_BSD, f"{key}.feed_forward")
        hidden_BSD, normed_BSD = add_norm(builder, hidden_BSD, fed_BSD, following)
    return Memory(hidden=_hybrid(builder, config, normed_BSD, positions), lengths=lengths_B)


def feed_forward(builder: GraphBuilder, value: Value, key: str) -> Value:
    """Linear, GELU, Linear."""
    grown = builder.matmul(value, builder.weight(f"{key}.up.weight", transposed=True))
    return linear(builder, biased_gelu(builder, grown, f"{key}.up"), f"{key}.down", bias=True)


def _hybrid(builder: GraphBuilder, config: HybridConfig, hidden_BSD: Value, positions: Positions) -> Value:
    """Σ softmax(w)_u · LayerNorm(x + MHA_u(x) + BiGRU_u(MHA_u(x))) over the units u."""
    shares = builder.split(builder.softmax(builder.weight("hybrid.mix")), [1] * config.hybrid_units)
    total: Value | None = None
    for index, share in enumerate(shares):
        key = f"hybrid.units.{index}"
        mixed_BSD = self_attention(builder, hidden_BSD, positions, f"{key}.attention", heads=config.num_heads)
        recurred_BSD = bidirectional(
            builder,
            "GRU",
            mixed_BSD,
            positions.lengths,
            f"{key}.recurrence",
            width=config.d_model,
            blocks=blocks(config),
        )
        summed_BSD = builder.add(builder.add(hidden_BSD, mixed_BSD), recurred_BSD)
        weighted_BSD = builder.mul(layer_norm(builder, summed_BSD, f"{key}.norm"), share)
        total = weighted_BSD if total is None else builder.add(total, weighted_BSD)
    assert total is not None
    return total


def blocks(config: HybridConfig) -> Blocks:
    """The configuration's cut of the recurrence."""
    return Blocks(block=config.recurrent_block, halo=config.recurrent_halo)


def route(builder: GraphBuilder, memory: Memory) -> Value:
    """P(generation, qa, summary) [B,3] from the mean of each row's memory."""
    inside_BS = is_token(builder, memory.lengths, builder.size(memory.hidden, 1))
    # Where, not a product: padding may hold anything.
    kept_BSD = builder.where(builder.unsqueeze(inside_BS, 2), memory.hidden, builder.constant(0.0, np.float32))
    lengths_B1 = builder.unsqueeze(builder.cast(memory.lengths, TensorProto.FLOAT), 1)
    pooled_BD = builder.div(builder.reduce_sum(kept_BSD, 1), lengths_B1)
    state_BD = gelu(builder, linear(builder, pooled_BD, "router.hidden", bias=True))
    return builder.softmax(linear(builder, state_BD, "router.output", bias=True))
