"""From a float32 graph to one of another precision; int8 and int4, which store weights in it, are made here.

Weights only: activations, inputs and outputs stay float32, so that no row's scale depends on its batch mates.

| weight | int8, int4 |
|---|---|
| matrices of MatMul | MatMulNBits, 8 or 4 bits, blocks of 32 |
| tied embedding (Gather and Gemm) | GatherBlockQuantized and MatMulNBits on the same 8-bit bytes |
| recurrent weights, position tables | fp16 + Cast |
| vectors, heads of a few outputs | fp32 |

ONNX Runtime folds the Casts when it loads the graph: they cost storage nothing and time nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from deploy.graphs.blockwise import BLOCK, Quantized, quantize
from deploy.graphs.builder import MICROSOFT, TRANSPOSED
from deploy.graphs.half import NARROWED, compute_in_half, to_half
from deploy.graphs.totals import take_totals

BITS = {"int8": 8, "int4": 4}
EMBEDDING_BITS = 8
"""The tied embedding keeps 8 bits in an int4 model: it is the output layer, whose errors reach every logit."""

ACCURACY_LEVEL = 4
"""Activations rounded to 8 bits a block and row inside the kernel: integers, and no batch mate has a say."""

SMALLEST_OUTPUT = 32
"""Matrices with fewer outputs (gates, router, emissions) are kept as they are: they are small, and decide much."""

SMALLEST_VOCABULARY = 4096
"""Tables with fewer rows are positions: stored as fp16."""

SMALLEST_NARROWED = 1024
"""Tensors with fewer elements stay float32."""

SCALES = ".scales"


def converter(precision: str) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    """What makes float32 graphs, all those of a bundle, ones of `precision`. Raises ValueError for an unknown one."""
    if precision == "fp16":
        return lambda model: take_totals(compute_in_half(model))
    return Narrower(precision).convert


@dataclass(slots=True)
class Narrower:
    """Rewrites graphs to int8 or int4; a tensor that several graphs share is quantised once."""

    precision: str
    _quantized: dict[str, Quantized] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.precision not in BITS:
            raise ValueError(f"precision must be int8 or int4, got {self.precision!r}")

    def convert(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A copy of a float32 graph in this precision. Raises ValueError where there is nothing to convert."""
        rewriter = _Rewriter(model, self)
        nodes = [each for node in model.graph.node for each in rewriter.rewrite(node)]
        converted = rewriter.finish(nodes)
        onnx.checker.check_model(converted)
        return converted

    def quantized(self, key: str, weight_NK: np.ndarray, bits: int) -> Quantized:
        """The quantised form of a tensor, from memory where it has been seen."""
        if key not in self._quantized:
            self._quantized[key] = quantize(weight_NK, bits)
        return self._quantized[key]


class _Rewriter:
    """One conversion: what is still stored as it was, what is stored anew, and the nodes that go in front."""

    def __init__(self, model: onnx.ModelProto, narrower: Narrower) -> None:
        self.model = model
        self.narrower = narrower
        self.bits = BITS[narrower.precision]
        self.old = {each.name: each for each in model.graph.initializer}
        self.new: dict[str, TensorProto] = {}
        self.folded: dict[str, NodeProto] = {}

    def rewrite(self, node: NodeProto) -> Iterable[NodeProto]:
        """The nodes that stand for `node`."""
        if node.op_type == "MatMul" and self._is_matrix(node.input[1]):
            yield self._matmul(node, node.input[1].removesuffix(TRANSPOSED), self._array(node.input[1]).T, self.bits)
            return
        if self._is_head(node):
            yield self._matmul(node, node.input[1], self._array(node.input[1]), EMBEDDING_BITS)
            return
        if node.op_type == "Gather" and self._is_vocabulary(node.input[0]):
            yield self._gather(node)
            return
        for name in node.input:
            if name in self.old:
                self._keep(name)
        yield node

    def finish(self, nodes: list[NodeProto]) -> onnx.ModelProto:
        """The converted model."""
        if not self.folded:
            raise ValueError("the graph has no float32 weights to convert: is it quantised already?")
        converted = onnx.ModelProto()
        converted.CopyFrom(self.model)
        del converted.graph.node[:], converted.graph.initializer[:]
        converted.graph.node.extend([*self.folded.values(), *nodes])
        converted.graph.initializer.extend(self.new.values())
        if all(each.domain != MICROSOFT for each in converted.opset_import):
            converted.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
        return converted

    def _is_head(self, node: NodeProto) -> bool:
        """A product with a tied embedding [V,D], as `tied_logits` writes it."""
        transposed = any(each.name == "transB" and each.i == 1 for each in node.attribute)
        return node.op_type == "Gemm" and transposed and len(node.input) == 2 and self._is_matrix(node.input[1], 1)

    def _is_matrix(self, name: str, inputs_axis: int = 0) -> bool:
        """A stored float32 matrix that can be cut into blocks along its inputs."""
        if name not in self.old or self.old[name].data_type != TensorProto.FLOAT or len(self.old[name].dims) != 2:
            return False
        dims = self.old[name].dims
        return dims[inputs_axis] % BLOCK == 0 and dims[1 - inputs_axis] >= SMALLEST_OUTPUT

    def _is_vocabulary(self, name: str) -> bool:
        """An embedding, by its number of rows: in a graph without an output layer too, so that all graphs share it."""
        return self._is_matrix(name, inputs_axis=1) and self.old[name].dims[0] >= SMALLEST_VOCABULARY

    def _array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self.old[name])

    def _keep(self, name: str) -> None:
        """Store an initializer as float16 with a Cast, or as it was where it is small or no float32."""
        tensor = self.old[name]
        size = int(np.prod(tensor.dims))
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or size < SMALLEST_NARROWED:
            self.new[name] = tensor
        elif name not in self.folded:
            self._store(name + NARROWED, to_half(name, self._array(name)))
            self.folded[name] = _cast(name + NARROWED, name)

    def _matmul(self, node: NodeProto, key: str, weight_NK: np.ndarray, bits: int) -> NodeProto:
        name, scales = self._place(key, weight_NK, bits)
        outputs, inputs = weight_NK.shape
        return helper.make_node(
            "MatMulNBits",
            [node.input[0], name, scales],
            list(node.output),
            name=node.name,
            domain=MICROSOFT,
            K=inputs,
            N=outputs,
            bits=bits,
            block_size=BLOCK,
            accuracy_level=ACCURACY_LEVEL,
        )

    def _gather(self, node: NodeProto) -> NodeProto:
        """Rows of the tied embedding, from the bytes that MatMulNBits reads; the Reshape is folded like the Casts."""
        weight_NK = self._array(node.input[0])
        name, scales = self._place(node.input[0], weight_NK, EMBEDDING_BITS)
        rows, shape = f"{name}.rows", f"constant.{name}.shape"
        self._store(shape, np.array(weight_NK.shape, np.int64))
        self.folded[rows] = helper.make_node("Reshape", [name, shape], [rows], name=f"Reshape {name}")
        return helper.make_node(
            "GatherBlockQuantized",
            [rows, node.input[1], scales],
            list(node.output),
            name=node.name,
            domain=MICROSOFT,
            gather_axis=0,
            quantize_axis=1,
            block_size=BLOCK,
            bits=EMBEDDING_BITS,
        )

    def _place(self, key: str, weight_NK: np.ndarray, bits: int) -> tuple[str, str]:
        """Store a matrix in blocks; names of its values and of its scales as float32."""
        stored = self.narrower.quantized(key, weight_NK, bits)
        name = f"{key}.q{bits}"
        self._store(name, stored.values)
        self._store(name + SCALES, stored.scales)
        self.folded[name] = _cast(name + SCALES, f"{name}{SCALES}.fp32")
        return name, f"{name}{SCALES}.fp32"

    def _store(self, name: str, array: np.ndarray) -> None:
        if name not in self.new:
            self.new[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)


def _cast(source: str, target: str) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"Cast {source}", to=TensorProto.FLOAT)
