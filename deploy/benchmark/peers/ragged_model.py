"""The `qa` model for Triton where its dynamic batcher joins requests of unequal length (`allow_ragged_batch`).

Triton copies it beside the engine's own code; it pads what was joined, runs it at once and cuts every answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from .trident_engine.stateless_model import TritonPythonModel as EqualLengths


class TritonPythonModel(EqualLengths):
    """Loads as the model of equal lengths does."""

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request, in their order. Each holds one window."""
        windows = [pb_utils.get_input_tensor_by_name(each, "input_ids").as_numpy()[0] for each in requests]
        lengths_B1 = np.array([[len(window)] for window in windows], np.int32)
        ids_BS = np.zeros((len(windows), int(lengths_B1.max())), np.int64)
        for row, window in zip(ids_BS, windows, strict=True):
            row[: len(window)] = window
        (emissions_BS3,) = self._session.run(["emissions"], {"input_ids": ids_BS, "lengths": lengths_B1})
        return [
            pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("emissions", row[None, : len(window)])])
            for row, window in zip(emissions_BS3, windows, strict=True)
        ]
