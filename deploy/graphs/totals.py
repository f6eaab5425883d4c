"""Step graphs whose attention is told how long the caches are, in place of finding the longest row.

GroupQueryAttention wants the number of positions as a scalar in the CPU's memory. Computed from lengths on a GPU it
would be copied to the host in the middle of every step, which no CUDA graph may hold. The buffers' capacity does as
well, for every row's own length bounds what is read.
"""

from __future__ import annotations

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

TOTAL = 6
"""Input of GroupQueryAttention that holds the number of positions."""

CACHE = 3
"""Input that holds the past keys, `self_key_i` or `cross_key_i`."""

NAMES = {"self": "total_target", "cross": "total_source"}
"""Of the new inputs, INT32 scalars: positions of the self- and of the cross-attention's buffers."""


def take_totals(model: ModelProto) -> ModelProto:
    """The graph with totals as inputs; the graph itself where no attention reads a cache."""
    cached = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    if not cached:
        return model
    taken = ModelProto()
    taken.CopyFrom(model)
    renamed = {node.input[TOTAL]: NAMES[node.input[CACHE].partition("_")[0]] for node in cached}
    for node in taken.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    taken.graph.input.extend(
        helper.make_tensor_value_info(name, TensorProto.INT32, []) for name in sorted(renamed.values())
    )
    _drop_unread(taken)
    onnx.checker.check_model(taken)
    return taken


def _drop_unread(model: ModelProto) -> None:
    """Leave out nodes, and stored tensors, that lead to no output any more."""
    graph = model.graph
    read = {each.name for each in graph.output}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if read.intersection(node.output):
            kept.append(node)
            read.update(node.input)
    stored = [each for each in graph.initializer if each.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(reversed(kept))
    graph.initializer.extend(stored)
