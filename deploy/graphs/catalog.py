"""The graphs of a bundle: their names, interfaces and how each is put together.

| graph | inputs | outputs |
|---|---|---|
| hybrid_lm | input_ids | logits [batch,source,V] |
| router | input_ids | task_probabilities [batch,3] |
| qa | input_ids, lengths [batch,1] | emissions [batch,source,3] |
| encoder | input_ids, lengths [batch] | memory [batch,source,D], task_probabilities |
| extractive | memory, lengths [batch] | emissions |
| generative_prefill, pointer_prefill | memory | cross keys and values, copy_keys |
| generative_step, pointer_step | token, lengths, caches | logits [batch,V], the caches |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto

from deploy.graphs.builder import GraphBuilder, Value
from deploy.graphs.decoders import Decoder, build_prefill, decode_step, step_lengths
from deploy.graphs.encoder import Memory, encode, lengths_of, route
from deploy.graphs.heads import emissions, masked_token_logits, tied_logits
from deploy.graphs.pointer import build_copy_keys, check_opset, mixture

if TYPE_CHECKING:
    from model.configuration import HybridConfig

DEFAULT_OPSET = 18
FLOAT, INT32, INT64 = TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64


def build_graph(
    name: str,
    config: HybridConfig,
    weights: Mapping[str, np.ndarray],
    *,
    opset: int = DEFAULT_OPSET,
    fusion: bool = True,
) -> onnx.ModelProto:
    """Build one graph with float32 weights.

    Args:
        name: one of GRAPHS.
        config: the network's dimensions.
        weights: its state dict, float32.
        opset: version of the standard operators.
        fusion: use ONNX Runtime's fused operators; the steps exist in no other form.

    Raises:
        ValueError: an unknown name, or a graph that this opset or a graph without fusion cannot express.
    """
    if name not in GRAPHS:
        raise ValueError(f"unknown graph {name!r}: choose from {', '.join(GRAPHS)}")
    if name in STEPS and not fusion:
        raise ValueError(f"{name} updates its caches in place, which needs GroupQueryAttention: pass --enable_fusion")
    builder = GraphBuilder(name=name, weights=weights, opset=opset, fusion=fusion)
    GRAPHS[name](builder, config)
    model = builder.build()
    _check_symbolic(model)
    return model


def _encoded(builder: GraphBuilder, config: HybridConfig, lengths_B: Value | None = None) -> Memory:
    ids_BS = builder.input("input_ids", INT64, ["batch", "source"])
    lengths_B = lengths_of(builder, ids_BS, config.pad_token_id) if lengths_B is None else lengths_B
    return encode(builder, config, ids_BS, lengths_B)


def _build_hybrid_lm(builder: GraphBuilder, config: HybridConfig) -> None:
    logits = masked_token_logits(builder, config, _encoded(builder, config))
    builder.output("logits", logits, FLOAT, ["batch", "source", config.vocab_size])


def _build_router(builder: GraphBuilder, config: HybridConfig) -> None:
    builder.output("task_probabilities", route(builder, _encoded(builder, config)), FLOAT, ["batch", 3])


def _build_qa(builder: GraphBuilder, config: HybridConfig) -> None:
    # Triton's batches have a dimension beside the batch: [batch,1].
    lengths_B = builder.squeeze(builder.input("lengths", INT32, ["batch", 1]), 1)
    scores = emissions(builder, config, _encoded(builder, config, lengths_B))
    builder.output("emissions", scores, FLOAT, ["batch", "source", 3])


def _build_encoder(builder: GraphBuilder, config: HybridConfig) -> None:
    memory = _encoded(builder, config, builder.input("lengths", INT32, ["batch"]))
    builder.output("memory", memory.hidden, FLOAT, ["batch", "source", config.d_model])
    builder.output("task_probabilities", route(builder, memory), FLOAT, ["batch", 3])


def _memory(builder: GraphBuilder, config: HybridConfig) -> Value:
    return builder.input("memory", FLOAT, ["batch", "source", config.d_model])


def _build_extractive(builder: GraphBuilder, config: HybridConfig) -> None:
    memory = Memory(hidden=_memory(builder, config), lengths=builder.input("lengths", INT32, ["batch"]))
    builder.output("emissions", emissions(builder, config, memory), FLOAT, ["batch", "source", 3])


def _build_generative_prefill(builder: GraphBuilder, config: HybridConfig) -> None:
    build_prefill(builder, Decoder.generative(config), _memory(builder, config))


def _build_generative_step(builder: GraphBuilder, config: HybridConfig) -> None:
    tokens_B1 = builder.input("tokens", INT64, ["batch", 1])
    lengths = step_lengths(builder)
    state_B1D = decode_step(builder, Decoder.generative(config), tokens_B1, lengths)
    builder.output("logits", tied_logits(builder, state_B1D, config.d_model), FLOAT, ["batch", config.vocab_size])


def _build_pointer_prefill(builder: GraphBuilder, config: HybridConfig) -> None:
    check_opset(builder.opset)
    memory_BSD, decoder = _memory(builder, config), Decoder.pointer(config)
    build_prefill(builder, decoder, memory_BSD)
    build_copy_keys(builder, decoder, memory_BSD)


def _build_pointer_step(builder: GraphBuilder, config: HybridConfig) -> None:
    check_opset(builder.opset)
    tokens_B1, decoder = builder.input("tokens", INT64, ["batch", 1]), Decoder.pointer(config)
    lengths = step_lengths(builder)
    state_B1D = decode_step(builder, decoder, tokens_B1, lengths)
    builder.output("logits", mixture(builder, decoder, state_B1D, lengths), FLOAT, ["batch", config.vocab_size])


GRAPHS: dict[str, Callable[[GraphBuilder, HybridConfig], None]] = {
    "hybrid_lm": _build_hybrid_lm,
    "router": _build_router,
    "qa": _build_qa,
    "encoder": _build_encoder,
    "extractive": _build_extractive,
    "generative_prefill": _build_generative_prefill,
    "generative_step": _build_generative_step,
    "pointer_prefill": _build_pointer_prefill,
    "pointer_step": _build_pointer_step,
}
STEPS = ("generative_step", "pointer_step")


def _check_symbolic(model: onnx.ModelProto) -> None:
    """The batch of every input and output is free: a frozen axis works in the first test and fails in service."""
    for info in [*model.graph.input, *model.graph.output]:
        first = info.type.tensor_type.shape.dim[0]
        assert first.dim_param == "batch", f"{model.graph.name}: {info.name} has a fixed batch"
