"""The way back: a state dict from the initializers of a bundle's graphs, exactly as the kernels compute with them.

Initializers are named after the state dict's tensors, with a suffix for how they are stored:

| suffix | stored as |
|---|---|
| (none) | as it is |
| .T | a Linear's [N,K] as [K,N] |
| .GRU, .LSTM | one direction's gates in ONNX's order, with a leading axis |
| .q8, .q4 and .scales | blocks of 32 |
| .fp16 | after any of the others, float16 |
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import numpy_helper

from deploy.graphs.blockwise import Quantized, dequantize
from deploy.graphs.builder import TRANSPOSED
from deploy.graphs.half import NARROWED
from deploy.graphs.precision import SCALES
from deploy.graphs.recurrence import GATES, reorder_gates


def restore_weights(models: Iterable[onnx.ModelProto]) -> dict[str, np.ndarray]:
    """Float32 tensors by their state dict names, from graphs whose weights are loaded."""
    stored: dict[str, np.ndarray] = {}
    for model in models:
        for tensor in model.graph.initializer:
            if tensor.name not in stored and not tensor.name.startswith("constant."):
                stored[tensor.name] = numpy_helper.to_array(tensor)
    weights: dict[str, np.ndarray] = {}
    for name, array in stored.items():
        if not name.endswith(SCALES):
            weights.update(_restore(name, array, stored))
    return weights


def _restore(name: str, array: np.ndarray, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    for bits in (8, 4):
        suffix = f".q{bits}"
        if name.endswith(suffix):
            matrix = dequantize(Quantized(values=array, scales=stored[name + SCALES], bits=bits))
            return {name.removesuffix(suffix): matrix}
    name, array = name.removesuffix(NARROWED), array.astype(np.float32)
    if name.endswith(TRANSPOSED):
        return {name.removesuffix(TRANSPOSED): array.T}
    for kind in GATES:
        if name.endswith(f".{kind}"):
            return _recurrent(name.removesuffix(f".{kind}"), array[0], kind)
    return {name: array}


def _recurrent(name: str, array: np.ndarray, kind: str) -> dict[str, np.ndarray]:
    """One direction's stored tensor to PyTorch's order; ONNX keeps both biases in one."""
    order = tuple(int(index) for index in np.argsort(GATES[kind]))
    module, _, parameter = name.rpartition(".")
    if parameter.startswith("bias_"):
        halves = np.split(array, 2)
        suffix = parameter.removeprefix("bias_")
        return {
            f"{module}.bias_{part}_{suffix}": reorder_gates(half, order)
            for part, half in zip(("ih", "hh"), halves, strict=True)
        }
    return {name: reorder_gates(array, order)}
