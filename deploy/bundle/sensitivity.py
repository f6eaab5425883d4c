"""Which products rows of 8 bits would hurt: each is run by itself, in both forms, on what it reads in its graph."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from deploy.bundle.storage import save_single
from deploy.graphs.integer_form import RECURRENCES, STEPS, is_product, to_integers, weight_of
from deploy.parity.feeds import random_feeds
from deploy.triton.sessions import open_session

LARGEST_ERROR = 0.05
"""Of a product in integers: root mean square of its error over that of the product. The shipped network's products came
to 0.012 to 0.028, on random tokens as on texts."""

JUDGED = (40, 3, 130)
"""Row lengths of the batch of random tokens on which products are judged."""

SEQUENCE_LENS = 4
"""Input of GRU and LSTM."""


@dataclass(slots=True)
class IntegerForms:
    """Brings graphs of one network into their integer form; a product that several graphs share is judged once."""

    vocabulary: int
    limit: float = LARGEST_ERROR
    errors: dict[str, float] = field(default_factory=dict)
    """By weight."""

    @property
    def kept(self) -> list[str]:
        """Weights whose products stay as they are."""
        return [key for key, error in self.errors.items() if error > self.limit]

    def convert(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """A graph of blockwise weights that computes in integers."""
        products = [] if model.graph.name in STEPS else [node for node in model.graph.node if is_product(node)]
        unknown = [node for node in products if weight_of(node) not in self.errors]
        if unknown:
            self.errors |= _errors(model, unknown, self.vocabulary)
        return to_integers(model, self.kept)


def _errors(model: onnx.ModelProto, nodes: Sequence[NodeProto], vocabulary: int) -> dict[str, float]:
    alone = {weight_of(node): _alone(model, node) for node in nodes}
    wanted = {each.name: each for single in alone.values() for each in single.graph.input}
    read = _inner_values(model, wanted, vocabulary)
    errors = {}
    for key, single in alone.items():
        given = {each.name: read[each.name] for each in single.graph.input}
        exact, rounded = (_run(form, given) for form in (single, to_integers(single)))
        # Recurrent operators write zeros behind a row's length, where the integer form leaves what means nothing.
        error = np.where(exact == 0, 0, rounded - exact)
        errors[key] = float(np.linalg.norm(error) / max(float(np.linalg.norm(exact)), 1e-12))
    return errors


def _alone(model: onnx.ModelProto, node: NodeProto) -> onnx.ModelProto:
    """A graph of one node and the constants it reads; its inputs are what is computed from the graph's inputs."""
    stored = {each.name: each for each in model.graph.initializer}
    producers = {name: each for each in model.graph.node for name in each.output}
    nodes, initializers, inputs = [node], {}, {}

    def follow(name: str, kind: int) -> None:
        if name in stored:
            initializers[name] = stored[name]
        elif name in producers and all(each in stored for each in producers[name].input):
            nodes.insert(0, producers[name])
            initializers.update((each, stored[each]) for each in producers[name].input)
        else:
            inputs[name] = helper.make_tensor_value_info(name, kind, None)

    for place, name in enumerate(node.input):
        counts = node.op_type in RECURRENCES and place == SEQUENCE_LENS
        follow(name, TensorProto.INT32 if counts else TensorProto.FLOAT)
    outputs = [helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "alone", list(inputs.values()), outputs, list(initializers.values()))
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _inner_values(
    model: onnx.ModelProto, wanted: Mapping[str, ValueInfoProto], vocabulary: int
) -> dict[str, np.ndarray]:
    """What stands at some places of a graph where it reads random tokens."""
    watching = onnx.ModelProto()
    watching.CopyFrom(model)
    known = {each.name for each in [*model.graph.input, *model.graph.output]}
    watching.graph.output.extend(each for name, each in wanted.items() if name not in known)
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(save_single(watching, Path(folder) / "graph.onnx")[0])
        feeds = random_feeds(session, vocabulary, JUDGED)
        names = [each.name for each in session.get_outputs()]
        return feeds | dict(zip(names, session.run(names, feeds), strict=True))


def _run(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(save_single(model, Path(folder) / "graph.onnx")[0])
        return session.run(None, dict(feeds))[0]
