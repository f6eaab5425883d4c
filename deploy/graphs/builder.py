"""GraphBuilder: writes ONNX nodes one call at a time, for the opset asked for.

    builder = GraphBuilder(name="router", weights=state, opset=18, fusion=True)
    ids = builder.input("input_ids", TensorProto.INT64, ["batch", "source"])
    hidden = builder.gather(builder.weight("embedding.weight"), ids)
    builder.output("hidden", hidden, TensorProto.FLOAT, ["batch", "source", 64])
    model = builder.build()

Initializers are named after the tensors of the state dict, so that graphs of one bundle can share their weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NewType

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

Value = NewType("Value", str)
"""The name of a tensor in the graph under construction."""

NONE = Value("")
"""An optional input that is left out."""

OPSETS = range(15, 23)
"""Versions of the ONNX operator set that the builder writes. 23 moves attention to an operator of another meaning."""

MICROSOFT = "com.microsoft"
TRANSPOSED = ".T"

Shape = Sequence[int | str]


class GraphBuilder:
    """Collects nodes, inputs and outputs of one graph.

    Args:
        name: the graph's name.
        weights: the network's state dict as float32 arrays.
        opset: version of the standard operators, one of OPSETS.
        fusion: emit ONNX Runtime's fused operators (domain com.microsoft) where there are any.
        prefix: begins the names of all nodes, for one that adds to a graph that stands.
    """

    def __init__(
        self, *, name: str, weights: Mapping[str, np.ndarray], opset: int, fusion: bool, prefix: str = ""
    ) -> None:
        if opset not in OPSETS:
            raise ValueError(f"opset must be from {OPSETS.start} to {OPSETS.stop - 1}, got {opset}")
        self.opset = opset
        self.fusion = fusion
        self._name = name
        self._prefix = prefix
        self._weights = weights
        self._nodes: list[NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._nested = False
        self._taken = 0
        self._inputs: list[ValueInfoProto] = []
        self._outputs: dict[Value, ValueInfoProto] = {}

    def nested(self, name: str) -> GraphBuilder:
        """A builder of a graph inside this one, for a node's attribute; constants are the outer graph's."""
        inner = GraphBuilder(
            name=name, weights=self._weights, opset=self.opset, fusion=self.fusion, prefix=f"{self.fresh(name)}."
        )
        inner._initializers, inner._nested = self._initializers, True
        return inner

    def input(self, name: str, kind: int, shape: Shape) -> Value:
        """Declare an input; strings in `shape` are symbolic dimensions, kind is a TensorProto data type."""
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return Value(name)

    def output(self, name: str, value: Value, kind: int, shape: Shape) -> None:
        """Declare `value` as the output `name`."""
        self._outputs[value] = helper.make_tensor_value_info(name, kind, shape)

    def weight(self, key: str, *, transposed: bool = False) -> Value:
        """A tensor of the state dict; `transposed` stores a Linear's [N,K] as [K,N], the layout MatMul reads."""
        array = self._weights[key]
        return self.initializer(f"{key}{TRANSPOSED}", array.T) if transposed else self.initializer(key, array)

    def weights_of(self, key: str) -> np.ndarray:
        """The array behind a tensor of the state dict, for weights that ONNX lays out in another order."""
        return self._weights[key]

    def initializer(self, name: str, array: np.ndarray) -> Value:
        """A stored tensor of the given name, made once."""
        if name not in self._initializers:
            self._initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return Value(name)

    def constant(self, array: np.ndarray | float | int, kind: type[np.generic] | None = None) -> Value:
        """A constant; equal constants share one initializer."""
        array = np.array(array, dtype=kind)
        digits = "_".join(str(each) for each in array.flatten().tolist())
        shape = "x".join(map(str, array.shape)) or "scalar"
        return self.initializer(f"constant.{array.dtype}.{shape}.{digits}", array)

    def ints(self, *values: int) -> Value:
        """A 1-D INT64 constant."""
        return self.constant(np.array(values), np.int64)

    def op(
        self,
        kind: str,
        *inputs: Value,
        domain: str = "",
        names: Sequence[str] | None = None,
        outputs: int = 1,
        **attributes: Any,
    ) -> tuple[Value, ...]:
        """Append a node and return its outputs, numbered or named by `names`, where "" leaves one out."""
        label = f"{self._prefix}{kind}_{self._taken + len(self._nodes)}"
        made = names if names is not None else [f"{label}.{index}" for index in range(outputs)]
        self._nodes.append(helper.make_node(kind, list(inputs), list(made), name=label, domain=domain, **attributes))
        return tuple(Value(each) for each in made)

    def take(self) -> list[NodeProto]:
        """Hand over the nodes written since the last call."""
        taken, self._nodes = self._nodes, []
        self._taken += len(taken)
        return taken

    def initializers(self) -> Iterable[TensorProto]:
        """All stored tensors."""
        return self._initializers.values()

    def fresh(self, label: str) -> str:
        """A name that no other tensor has, for the next node's outputs."""
        return f"{self._prefix}{label}_{self._taken + len(self._nodes)}"

    def fused(self, kind: str, *inputs: Value, outputs: int = 1, **attributes: Any) -> tuple[Value, ...]:
        """Append one of ONNX Runtime's own operators."""
        return self.op(kind, *inputs, domain=MICROSOFT, outputs=outputs, **attributes)

    # Standard operators, with the differences between opsets hidden.

    def add(self, left: Value, right: Value) -> Value:
        return self.op("Add", left, right)[0]

    def sub(self, left: Value, right: Value) -> Value:
        return self.op("Sub", left, right)[0]

    def mul(self, left: Value, right: Value) -> Value:
        return self.op("Mul", left, right)[0]

    def div(self, left: Value, right: Value) -> Value:
        return self.op("Div", left, right)[0]

    def minimum(self, left: Value, right: Value) -> Value:
        return self.op("Min", left, right)[0]

    def maximum(self, left: Value, right: Value) -> Value:
        return self.op("Max", left, right)[0]

    def matmul(self, left: Value, right: Value) -> Value:
        return self.op("MatMul", left, right)[0]

    def sigmoid(self, value: Value) -> Value:
        return self.op("Sigmoid", value)[0]

    def less(self, left: Value, right: Value) -> Value:
        return self.op("Less", left, right)[0]

    def where(self, condition: Value, yes: Value, no: Value) -> Value:
        return self.op("Where", condition, yes, no)[0]

    def softmax(self, value: Value, axis: int = -1) -> Value:
        return self.op("Softmax", value, axis=axis)[0]

    def cast(self, value: Value, kind: int) -> Value:
        return self.op("Cast", value, to=kind)[0]

    def gather(self, table: Value, indices: Value, axis: int = 0) -> Value:
        return self.op("Gather", table, indices, axis=axis)[0]

    def transpose(self, value: Value, *permutation: int) -> Value:
        return self.op("Transpose", value, perm=permutation)[0]

    def unsqueeze(self, value: Value, *axes: int) -> Value:
        return self.op("Unsqueeze", value, self.ints(*axes))[0]

    def squeeze(self, value: Value, *axes: int) -> Value:
        return self.op("Squeeze", value, self.ints(*axes))[0]

    def concat(self, *values: Value, axis: int) -> Value:
        return self.op("Concat", *values, axis=axis)[0]

    def split(self, value: Value, sizes: Sequence[int], axis: int = -1) -> tuple[Value, ...]:
        if len(sizes) == 1:
            return (value,)
        return self.op("Split", value, self.ints(*sizes), axis=axis, outputs=len(sizes))

    def slice(self, value: Value, start: Value, stop: Value, axis: int) -> Value:
        """Elements from `start` to `stop` (1-D INT64 of one element each) along one axis."""
        return self.op("Slice", value, start, stop, self.ints(axis))[0]

    def reshape(self, value: Value, *shape: int | Value) -> Value:
        """Reshape; 0 keeps a dimension, -1 infers it, a Value is a 1-D INT64 of one element computed at run time."""
        if all(isinstance(each, int) for each in shape):
            return self.op("Reshape", value, self.ints(*(each for each in shape if isinstance(each, int))))[0]
        parts = [self.ints(each) if isinstance(each, int) else each for each in shape]
        return self.op("Reshape", value, self.concat(*parts, axis=0))[0]

    def size(self, value: Value, axis: int) -> Value:
        """The run-time size of one axis, 1-D INT64 of one element."""
        return self.op("Shape", value, start=axis, end=axis + 1)[0]

    def range(self, count: Value) -> Value:
        """0, 1, … count-1 as INT64; `count` as `size` returns it."""
        zero, one = self.constant(0, np.int64), self.constant(1, np.int64)
        return self.op("Range", zero, self.reshape(count), one)[0]

    def reduce_sum(self, value: Value, *axes: int, keepdims: bool = False) -> Value:
        return self.op("ReduceSum", value, self.ints(*axes), keepdims=int(keepdims))[0]

    def reduce_max(self, value: Value, *axes: int, keepdims: bool = False) -> Value:
        return self._reduce("ReduceMax", value, axes, keepdims)

    def reduce_mean(self, value: Value, *axes: int, keepdims: bool = False) -> Value:
        return self._reduce("ReduceMean", value, axes, keepdims)

    def _reduce(self, kind: str, value: Value, axes: Sequence[int], keepdims: bool) -> Value:
        if self.opset >= 18:
            return self.op(kind, value, self.ints(*axes), keepdims=int(keepdims))[0]
        return self.op(kind, value, keepdims=int(keepdims), axes=axes)[0]

    def graph(self) -> onnx.GraphProto:
        """What has been written, as a graph."""
        initializers = [] if self._nested else list(self._initializers.values())
        renamed = {value: info.name for value, info in self._outputs.items()}
        for node in self._nodes:
            node.input[:] = [renamed.get(Value(each), each) for each in node.input]
            node.output[:] = [renamed.get(Value(each), each) for each in node.output]
        return helper.make_graph(self._nodes, self._name, self._inputs, list(self._outputs.values()), initializers)

    def build(self) -> onnx.ModelProto:
        """The finished model, checked. Raises onnx.checker.ValidationError where a node is malformed."""
        graph = self.graph()
        domains = {node.domain for node in graph.node} | {""}
        versions = [helper.make_opsetid(each, self.opset if each == "" else 1) for each in sorted(domains)]
        model = helper.make_model(
            graph,
            producer_name="trident",
            opset_imports=versions,
            ir_version=helper.find_min_ir_version_for(versions, ignore_unknown=True),
        )
        onnx.checker.check_model(model)
        return model
