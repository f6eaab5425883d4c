"""The two autoregressive decoders: what is computed once a source (prefill), and once a token (step).

The step reads and writes caches of fixed size in place, one row a request:

    self_key_i   [batch,K,max_target,E]   grows by one position a step
    cross_key_i  [batch,K,max_source,E]   filled by the prefill, read only

K key and value heads are shared by groups of the H heads.

Rows are independent: each has its own target and source length, so requests of any age share a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import TensorProto

from deploy.graphs.attention import Cache, cached_attention, no_keys, split_heads
from deploy.graphs.builder import GraphBuilder, Value
from deploy.graphs.encoder import EMBEDDING, feed_forward
from deploy.graphs.layers import add_norm, layer_norm, linear
from deploy.graphs.positions import add_position_of_step

if TYPE_CHECKING:
    from model.configuration import HybridConfig

FLOAT = TensorProto.FLOAT


@dataclass(frozen=True, kw_only=True, slots=True)
class Decoder:
    """A stack of decoder layers in the state dict."""

    key: str
    layers: int
    heads: int
    kv_heads: int
    width: int

    @classmethod
    def generative(cls, config: HybridConfig) -> Decoder:
        """The decoder of free text."""
        return cls._of("generative", config.decoder_layers, config)

    @classmethod
    def pointer(cls, config: HybridConfig) -> Decoder:
        """The decoder of summaries."""
        return cls._of("pointer", config.pointer_layers, config)

    @classmethod
    def _of(cls, key: str, layers: int, config: HybridConfig) -> Decoder:
        heads, kv_heads = config.num_heads, config.num_kv_heads
        return cls(key=key, layers=layers, heads=heads, kv_heads=kv_heads, width=config.d_model)

    @property
    def kv_width(self) -> int:
        """Of the keys, and of the values, of one attention."""
        return self.width // self.heads * self.kv_heads

    @property
    def copy_names(self) -> list[str]:
        """Copy keys are as wide as states: so many tensors of a cache's shape."""
        return ["copy_keys", *(f"copy_keys_{part}" for part in range(1, self.heads // self.kv_heads))]

    def cache_shape(self, positions: str) -> list[int | str]:
        """Shape of one cache whose third axis is named `positions`."""
        return ["batch", self.kv_heads, positions, self.width // self.heads]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLengths:
    """Where each row stands, as INT32."""

    target: Value
    """[B]: tokens already in the self cache, the position of this step's token."""

    source: Value
    """[B]: tokens of the source."""

    longest_target: Value
    """Scalar: valid positions of the longest self cache, this step's included."""

    longest_source: Value
    """Scalar."""


def build_prefill(builder: GraphBuilder, decoder: Decoder, memory_BSD: Value) -> None:
    """Declare the cross-attention's keys and values of every layer as outputs, [B,K,S,E]."""
    shape = decoder.cache_shape("source")
    for index in range(decoder.layers):
        both = linear(builder, memory_BSD, f"{decoder.key}.layers.{index}.cross_attention.kv")
        parts = builder.split(both, [decoder.kv_width] * 2)
        for name, part in zip(("key", "value"), parts, strict=True):
            cached = split_heads(builder, part, decoder.kv_heads, decoder.kv_width)
            builder.output(f"cross_{name}_{index}", cached, FLOAT, shape)


def step_lengths(builder: GraphBuilder) -> StepLengths:
    """Declare the length inputs of a step."""
    target = builder.input("target_lengths", TensorProto.INT32, ["batch"])
    source = builder.input("source_lengths", TensorProto.INT32, ["batch"])
    one, two = builder.constant(1, np.int32), builder.constant(2, np.int32)
    # GroupQueryAttention takes a total of 1 for the first token of a prompt, and would ignore the cross cache.
    longest_source = builder.maximum(builder.reduce_max(source, 0), two)
    longest_target = builder.add(builder.reduce_max(target, 0), one)
    return StepLengths(target=target, source=source, longest_target=longest_target, longest_source=longest_source)


def decode_step(builder: GraphBuilder, decoder: Decoder, tokens_B1: Value, lengths: StepLengths) -> Value:
    """Run the layers over one token a row, declaring the caches as inputs and outputs; → normed state [B,1,D]."""
    embedded_B1D = builder.gather(builder.weight(EMBEDDING), tokens_B1)
    hidden = add_position_of_step(builder, embedded_B1D, lengths.target, f"{decoder.key}.positions")
    normed = layer_norm(builder, hidden, f"{decoder.key}.layers.0.self_norm")
    last_source = builder.sub(lengths.source, builder.constant(1, np.int32))
    for index in range(decoder.layers):
        key = f"{decoder.key}.layers.{index}"
        last = index == decoder.layers - 1
        following = f"{decoder.key}.norm" if last else f"{decoder.key}.layers.{index + 1}.self_norm"

        own = _cache(builder, decoder, "self", index, lengths.target, lengths.longest_target)
        qkv = linear(builder, normed, f"{key}.self_attention.qkv")
        mixed = cached_attention(builder, qkv, own, heads=decoder.heads, kv_heads=decoder.kv_heads)
        hidden, normed = add_norm(
            builder, hidden, linear(builder, mixed, f"{key}.self_attention.out"), f"{key}.cross_norm"
        )

        source = _cache(builder, decoder, "cross", index, last_source, lengths.longest_source)
        query = linear(builder, normed, f"{key}.cross_attention.q")
        none = no_keys(builder, query, decoder.kv_width)
        mixed = cached_attention(builder, query, source, none, heads=decoder.heads, kv_heads=decoder.kv_heads)
        hidden, normed = add_norm(
            builder, hidden, linear(builder, mixed, f"{key}.cross_attention.out"), f"{key}.feed_forward_norm"
        )

        hidden, normed = add_norm(builder, hidden, feed_forward(builder, normed, f"{key}.feed_forward"), following)
    return normed


def _cache(builder: GraphBuilder, decoder: Decoder, kind: str, index: int, last: Value, longest: Value) -> Cache:
    """Declare one layer's cache, `self` or `cross`, as inputs and as outputs for the same buffers."""
    shape = decoder.cache_shape("max_target" if kind == "self" else "max_source")
    names = [f"{kind}_{part}_{index}" for part in ("key", "value")]
    keys, values = (builder.input(name, FLOAT, shape) for name in names)
    for name in names:
        builder.output(f"present_{name}", Value(f"present_{name}"), FLOAT, shape)
    return Cache(
        keys=keys,
        values=values,
        present_keys=f"present_{names[0]}",
        present_values=f"present_{names[1]}",
        last=last,
        longest=longest,
    )
