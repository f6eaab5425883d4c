"""Heads that read the memory once: masked-token logits, span emissions, and the tied output layer they share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploy.graphs.builder import GraphBuilder, Value
from deploy.graphs.encoder import EMBEDDING, Memory, blocks
from deploy.graphs.layers import add_norm, layer_norm, linear
from deploy.graphs.recurrence import bidirectional

if TYPE_CHECKING:
    from model.configuration import HybridConfig


def tied_logits(builder: GraphBuilder, hidden_XD: Value, width: int) -> Value:
    """[…,D] → [rows,V]: the product with the embedding, which Gemm and MatMulNBits read by rows, stored once."""
    return builder.op("Gemm", builder.reshape(hidden_XD, -1, width), builder.weight(EMBEDDING), transB=1)[0]


def masked_token_logits(builder: GraphBuilder, config: HybridConfig, memory: Memory) -> Value:
    """FP32 [B,S,V]."""
    state_BSD = layer_norm(builder, linear(builder, memory.hidden, "lm_head.transform", bias=True), "lm_head.norm")
    logits = tied_logits(builder, state_BSD, config.d_model)
    batch, size = builder.size(memory.hidden, 0), builder.size(memory.hidden, 1)
    return builder.reshape(logits, batch, size, config.vocab_size)


def emissions(builder: GraphBuilder, config: HybridConfig, memory: Memory) -> Value:
    """Scores of the tags O, B, I, FP32 [B,S,3]."""
    recurred_BSD = bidirectional(
        builder,
        "LSTM",
        memory.hidden,
        memory.lengths,
        "extractive.recurrence",
        width=config.d_model,
        blocks=blocks(config),
    )
    _, normed_BSD = add_norm(builder, memory.hidden, recurred_BSD, "extractive.norm")
    return linear(builder, normed_BSD, "extractive.output", bias=True)
