"""A Triton model for any stateless graph of the bundle, for servers that have only the Python backend.

It does what the native onnxruntime backend does: requests that Triton's dynamic batching hands over together run as
one batch. Requests whose clients have gone are left out. Parameters in config.pbtxt: `graph` (its name in the
manifest), `threads`, `verify`, `bundle` and `bundle_sha256`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .arguments import model_folder, read_parameters
from .limits import EngineSettings
from .manifest import load_manifest
from .sessions import NUMPY_TYPES, open_session

log = logging.getLogger(__name__)

Inputs = Mapping[str, np.ndarray]


class TritonPythonModel:
    """What the Python backend loads."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the graph. Raises ValueError on bad parameters, BundleError on a bundle that is damaged or another."""
        parameters = read_parameters(args)
        if "graph" not in parameters:
            raise ValueError("parameter graph is missing: name a graph of the manifest")
        settings, graph = EngineSettings.from_parameters(parameters), parameters["graph"]
        folder = model_folder(args)
        manifest = load_manifest(folder, verify=settings.verify, graphs=[graph])
        self._session = open_session(folder / manifest.graph_file(graph), threads=settings.threads, keeps_memory=False)
        self._vocabulary = int(manifest.config["vocab_size"])
        self._outputs = [each.name for each in self._session.get_outputs()]

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request, in their order; a bad request fails alone."""
        responses: list[Any] = [None] * len(requests)
        groups: dict[tuple, dict[int, Inputs]] = {}
        for index, request in enumerate(requests):
            inputs = {each.name(): each.as_numpy() for each in request.inputs()}
            try:
                self._check(inputs)
            except ValueError as error:
                responses[index] = _failure(str(error))
                continue
            shapes = tuple(inputs[name].shape[1:] for name in sorted(inputs))
            groups.setdefault(shapes, {})[index] = inputs
        for group in groups.values():
            # Asked right before its run: clients also go while the group before is being computed.
            for index in [index for index in group if _is_cancelled(requests[index])]:
                responses[index] = _failure("the client has gone", pb_utils.TritonError.CANCELLED)
                del group[index]
            for index, response in zip(group, self._answer(list(group.values())), strict=True):
                responses[index] = response
        return responses

    def _check(self, inputs: Inputs) -> None:
        """Raises ValueError where a request's tensors are not the graph's."""
        for expected in self._session.get_inputs():
            dtype, tensor = NUMPY_TYPES[expected.type], inputs.get(expected.name)
            if tensor is None:
                raise ValueError(f"the request has no {expected.name}: send it as {dtype} {expected.shape}")
            fits = tensor.ndim == len(expected.shape) and all(
                size > 0 and wanted in (size, None)
                for size, wanted in zip(tensor.shape, map(_fixed, expected.shape), strict=True)
            )
            if tensor.dtype != dtype or not fits:
                raise ValueError(
                    f"{expected.name} is {tensor.dtype} {list(tensor.shape)}: send {dtype} {expected.shape}"
                )
        if len({len(tensor) for tensor in inputs.values()}) != 1:
            raise ValueError("the inputs have different batch sizes: send as many rows of each")
        self._check_values(inputs)

    def _check_values(self, inputs: Inputs) -> None:
        """Raises ValueError where a tensor holds what the graph would answer all the same, with nonsense.

        ONNX Runtime takes a negative id for one counted from the vocabulary's end, and a length for what it is.
        """
        ids_BS, lengths_B1 = inputs.get("input_ids"), inputs.get("lengths")
        if ids_BS is None:
            return
        for bad in (ids_BS.min(), ids_BS.max()):
            if not 0 <= bad < self._vocabulary:
                raise ValueError(f"input_ids holds the id {bad}: ids are 0 to {self._vocabulary - 1}")
        if lengths_B1 is not None:
            for bad in (lengths_B1.min(), lengths_B1.max()):
                if not 1 <= bad <= ids_BS.shape[1]:
                    raise ValueError(f"lengths holds {bad}: rows of {ids_BS.shape[1]} ids have 1 to {ids_BS.shape[1]}")

    def _answer(self, group: Sequence[Inputs]) -> list[Any]:
        """Run requests of one shape as one batch; one at a time where that fails, to fail only the bad ones."""
        if not group:
            return []
        try:
            joined = {name: np.concatenate([inputs[name] for inputs in group]) for name in group[0]}
            results = self._session.run(self._outputs, joined)
        except Exception as error:
            if len(group) > 1:
                return [response for inputs in group for response in self._answer([inputs])]
            log.exception("a request failed")
            return [_failure(str(error))]
        borders = np.cumsum([len(next(iter(inputs.values()))) for inputs in group])[:-1]
        parts = [np.split(result, borders) for result in results]
        return [
            pb_utils.InferenceResponse(
                output_tensors=[
                    pb_utils.Tensor(name, part[index]) for name, part in zip(self._outputs, parts, strict=True)
                ]
            )
            for index in range(len(group))
        ]


def _fixed(dimension: int | str) -> int | None:
    """A dimension of a graph; None where it is symbolic."""
    return dimension if isinstance(dimension, int) else None


def _is_cancelled(request: Any) -> bool:
    """Whether its client has gone. Where Triton cannot say, it counts as still there."""
    try:
        return request.is_cancelled()
    except Exception:
        log.exception("a client cannot be asked whether it has gone; its request is served")
        return False


def _failure(message: str, code: int | None = None) -> Any:
    error = pb_utils.TritonError(message, pb_utils.TritonError.INVALID_ARG if code is None else code)
    return pb_utils.InferenceResponse(output_tensors=[], error=error)
