"""What goes into a bundle: its graphs, and the facts that manifest and model card state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from deploy.triton.manifest import CrfScores, Limits


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleContents:
    """Everything but the tokenizer."""

    name: str
    preset: str
    precision: str
    opset: int
    config: Mapping[str, Any]
    """The fields of `HybridConfig`."""

    parameters: int
    """How many the network has, tied ones once."""

    models: Mapping[str, onnx.ModelProto]
    """Graph name to graph, weights inside."""

    crf: CrfScores
    limits: Limits
    license: str = "NOASSERTION"
    """SPDX expression of the weights' licence; NOASSERTION says that nobody stated it."""

    provenance: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    quantization: Mapping[str, Any] = field(default_factory=dict)
