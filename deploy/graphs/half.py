"""From a float32 graph to one that computes in float16, as GPUs do best; their attention over caches knows no other.

Weights, states, caches and the memory between graphs are float16. What stays float32:

| what | why |
|---|---|
| positions: whatever follows from token ids, lengths and constants alone | angles in float16 are off by up to 0.8 rad |
| from a softmax to the logarithm of a mixture | probabilities below 6e-8 would be zero |
| logits, emissions, task probabilities | what reads them is the same in every precision |

Normalisation, softmax and attention take float16 and add up in float32 inside their kernels. ONNX Runtime's own
converter is not used: it needs the type of every value, which shape inference does not tell behind fused operators, and
narrows what passes from one float32 node to the next.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

SINGLE, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
SCORES = ("logits", "emissions", "task_probabilities")
"""Outputs that are float32 in every precision."""

CONSTANT = "constant."
"""How the builder's names of constants begin."""

NARROWED = ".fp16"
"""Behind the name of a tensor that is stored, or handed on, in float16."""

WIDENED = ".fp32"
MIXTURE = ("Add", "Mul", "ScatterElements", "Split", "Softmax")
"""Operators between a mixture's softmax and its logarithm."""

NO_NUMBERS = ("Shape", "Equal", "Less", "Not")
"""Operators whose outputs are integers or truths whatever they read."""


def compute_in_half(model: ModelProto) -> ModelProto:
    """A copy of a float32 graph that computes in float16.

    Raises ValueError where it has no float32 weights, or one that float16 cannot hold.
    """
    weights = (each for each in model.graph.initializer if not each.name.startswith(CONSTANT))
    if not any(each.data_type == SINGLE for each in weights):
        raise ValueError("the graph has no float32 weights to convert: is it quantised already?")
    exact = {each.name for each in (*_positions(model), *_mixtures(model))}
    converted = _Halving(model, exact).run()
    onnx.checker.check_model(converted)
    return converted


def to_half(name: str, array: np.ndarray) -> np.ndarray:
    """In float16. Raises ValueError for a finite number that it cannot hold."""
    largest = float(np.abs(array, where=np.isfinite(array), out=np.zeros_like(array)).max(initial=0.0))
    if largest > float(np.finfo(np.float16).max):
        raise ValueError(f"{name} holds {largest:g}, more than float16's 65504: keep this model in fp32")
    return array.astype(np.float16)


def _positions(model: ModelProto) -> Iterator[NodeProto]:
    """Nodes whose inputs follow from integers and constants alone."""
    graph = model.graph
    known = {each.name for each in graph.input if each.type.tensor_type.elem_type != SINGLE}
    known |= {each.name for each in graph.initializer if each.name.startswith(CONSTANT)}
    for node in graph.node:
        if all(not name or name in known for name in node.input):
            known.update(node.output)
            yield node


def _mixtures(model: ModelProto) -> Iterator[NodeProto]:
    """Logarithms, and what leads to them from the nearest softmax."""
    makers = {name: node for node in model.graph.node for name in node.output}
    waiting = [node for node in model.graph.node if node.op_type == "Log"]
    while waiting:
        node = waiting.pop()
        yield node
        if node.op_type != "Softmax":
            found = (makers.get(name) for name in node.input)
            waiting.extend(each for each in found if each is not None and each.op_type in MIXTURE)


class _Halving:
    """One conversion: every value's type, what is stored in which, and a Cast where a node reads the other."""

    def __init__(self, model: ModelProto, exact: set[str]) -> None:
        self.model, self.exact = model, exact
        self.stored = {each.name: each for each in model.graph.initializer}
        self.types = {
            each.name: HALF for each in model.graph.input if each.type.tensor_type.elem_type == SINGLE
        }  # of floating-point values alone
        self.tensors: dict[str, TensorProto] = {}
        self.nodes: list[NodeProto] = []
        self.casts: set[str] = set()

    def run(self) -> ModelProto:
        """The converted model."""
        for node in self.model.graph.node:
            self._convert(node)
        converted = ModelProto()
        converted.CopyFrom(self.model)
        graph = converted.graph
        for each in graph.output:
            if each.name in SCORES and self.types[each.name] == HALF:
                self._widen_output(each.name)
            elif each.name not in SCORES:
                each.type.tensor_type.elem_type = HALF
        for each in graph.input:
            if each.name in self.types:
                each.type.tensor_type.elem_type = HALF
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend(self.tensors.values())
        return converted

    def _convert(self, original: NodeProto) -> None:
        node = NodeProto()
        node.CopyFrom(original)
        kind = SINGLE if node.name in self.exact else HALF
        reads_numbers = [self._is_number(name) for name in node.input]
        node.input[:] = [
            self._read(name, kind) if is_number else self._keep(name)
            for name, is_number in zip(node.input, reads_numbers, strict=True)
        ]
        gives_numbers = any(reads_numbers) and node.op_type not in NO_NUMBERS
        if node.op_type == "Cast":
            target = next(each for each in node.attribute if each.name == "to")
            gives_numbers = target.i == SINGLE
            target.i = kind if gives_numbers else target.i
        if gives_numbers:
            self.types |= dict.fromkeys(node.output, kind)
        self.nodes.append(node)

    def _is_number(self, name: str) -> bool:
        return name in self.types or (name in self.stored and self.stored[name].data_type == SINGLE)

    def _keep(self, name: str) -> str:
        """A value that is no floating-point one; stored ones go along."""
        if name in self.stored:
            self.tensors[name] = self.stored[name]
        return name

    def _read(self, name: str, kind: int) -> str:
        """The name under which a floating-point value can be read in a type."""
        if name in self.stored:
            return self._keep(name) if kind == SINGLE else self._narrow(name)
        if self.types[name] == kind:
            return name
        target = name + (NARROWED if kind == HALF else WIDENED)
        if target not in self.casts:
            self.casts.add(target)
            self.nodes.append(helper.make_node("Cast", [name], [target], name=f"Cast {target}", to=kind))
        return target

    def _narrow(self, name: str) -> str:
        target = name + NARROWED
        if target not in self.tensors:
            array = to_half(name, numpy_helper.to_array(self.stored[name]))
            self.tensors[target] = numpy_helper.from_array(array, target)
        return target

    def _widen_output(self, name: str) -> None:
        for node in self.nodes:
            node.input[:] = [name + NARROWED if each == name else each for each in node.input]
            node.output[:] = [name + NARROWED if each == name else each for each in node.output]
        self.nodes.append(helper.make_node("Cast", [name + NARROWED], [name], name=f"Cast {name}", to=SINGLE))
