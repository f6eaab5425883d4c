"""From a graph of 8- or 4-bit weights to one that computes in integers, row by row; what is stored stays as it is.

| node | becomes |
|---|---|
| MatMulNBits | `integers.row_product` on levels of a channel |
| GRU, LSTM | `scan.scan`, its weights rounded to levels of a channel |
| the tied output layer | as it is: it shares its bytes with the embedding, and its errors reach every logit |
| decode steps | as they are: one token a row leaves nothing to win, and texts depend on their errors most |

MatMulNBits rounds inputs in blocks of 32 and unpacks weights as it goes. GFLOP/s of processor time, one thread, AVX2:

| K×N, rows | MatMulNBits | fp32 MatMul | row_product |
|---|---|---|---|
| 512×2,048, 182 | 46 | 77 | 131 |
| 2,048×512, 182 | 46 | 78 | 123 |
| 512×512, 182 | 46 | 79 | 107 |
| 512×2,048, 3,072 | 44 | 71 | 115 |
"""

from __future__ import annotations

from collections.abc import Collection

import onnx
from onnx import NodeProto, helper

from deploy.graphs.blockwise import BLOCK
from deploy.graphs.builder import MICROSOFT, GraphBuilder, Value
from deploy.graphs.integers import Rows, levels_of, levels_of_blocks, quantise_rows, row_product
from deploy.graphs.precision import SMALLEST_VOCABULARY
from deploy.graphs.scan import Direction, scan

STEPS = ("generative_step", "pointer_step")
RECURRENCES = ("GRU", "LSTM")


def is_product(node: NodeProto) -> bool:
    """Whether a node has an integer form."""
    if node.op_type == "MatMulNBits":
        return _attributes(node)["N"] < SMALLEST_VOCABULARY
    return node.op_type in RECURRENCES


def weight_of(node: NodeProto) -> str:
    """The stored tensor by which a product is known in every graph that has it."""
    return node.input[1]


def to_integers(model: onnx.ModelProto, kept: Collection[str] = ()) -> onnx.ModelProto:
    """A copy of a graph that computes in integers, but for the products whose weight is in `kept`, and decode steps."""
    converted = onnx.ModelProto()
    converted.CopyFrom(model)
    if model.graph.name in STEPS:
        return converted
    opset = next(each.version for each in model.opset_import if each.domain == "")
    rewriter = _Rewriter(GraphBuilder(name=model.graph.name, weights={}, opset=opset, fusion=True, prefix="integer."))
    del converted.graph.node[:]
    for node in model.graph.node:
        replaced = is_product(node) and weight_of(node) not in kept
        converted.graph.node.extend(rewriter.rewrite(node) if replaced else [node])
    known = {each.name for each in model.graph.initializer}
    converted.graph.initializer.extend(each for each in rewriter.builder.initializers() if each.name not in known)
    if all(each.domain != MICROSOFT for each in converted.opset_import):
        converted.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    return converted


class _Rewriter:
    """One conversion: an input that several products read is quantised once."""

    def __init__(self, builder: GraphBuilder) -> None:
        self.builder = builder
        self._rows: dict[str, Rows] = {}

    def rewrite(self, node: NodeProto) -> list[NodeProto]:
        """The nodes that stand for a product."""
        value = self._scan(node) if node.op_type in RECURRENCES else self._product(node)
        self.builder.op("Identity", value, names=[node.output[0]])
        return self.builder.take()

    def _product(self, node: NodeProto) -> Value:
        hidden, values, scales = (Value(each) for each in node.input[:3])
        attributes = _attributes(node)
        assert attributes["block_size"] == BLOCK
        shape = (attributes["N"], attributes["K"])
        levels = levels_of_blocks(self.builder, values, scales, shape, attributes["bits"])
        return row_product(self.builder, self._quantised(hidden), levels)

    def _quantised(self, value: Value) -> Rows:
        if value not in self._rows:
            self._rows[value] = quantise_rows(self.builder, value)
        return self._rows[value]

    def _scan(self, node: NodeProto) -> Value:
        builder, attributes = self.builder, _attributes(node)
        hidden, inputs, states, bias, lengths = (Value(each) for each in node.input)
        gates = (3 if node.op_type == "GRU" else 4) * attributes["hidden_size"]
        biases = builder.split(builder.squeeze(bias, 0), [gates, gates])
        direction = Direction(
            kind=node.op_type,
            units=attributes["hidden_size"],
            reverse=attributes.get("direction") == b"reverse",
            inputs=levels_of(builder, builder.squeeze(inputs, 0)),
            states=levels_of(builder, builder.squeeze(states, 0)),
            input_bias=biases[0],
            state_bias=biases[1],
        )
        return builder.unsqueeze(scan(builder, direction, hidden, lengths), 1)


def _attributes(node: NodeProto) -> dict:
    return {each.name: helper.get_attribute_value(each) for each in node.attribute}
