"""Writes one graph of a trained network as ONNX, and says how it compares with the network.

The result is compared with PyTorch on rows of several lengths, none of which the graph was built for, and refused above
a tolerance.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deploy.bundle.checkpoints import load_checkpoint, size_of
from deploy.bundle.export import build_models
from deploy.bundle.storage import operators_of, save_single
from deploy.parity.agreement import CHAINS, call, graph_differences
from deploy.parity.difference import TOLERANCES, check, worst
from deploy.parity.feeds import TIMED, median_ms, random_rows
from deploy.parity.graph_runner import GraphRunner
from deploy.parity.torch_runner import TorchRunner

FUSED = ("MultiHeadAttention", "GroupQueryAttention", "BiasGelu", "Gelu", "LayerNormalization", "GRU", "LSTM")
"""Operators that stand for many, of ONNX Runtime and of ONNX."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimisation:
    """What became of a checkpoint."""

    output_model: str
    graph: str
    opset: int
    parameters: int
    bytes_before: int
    """Of the checkpoint."""

    bytes_after: int
    operators: dict[str, int]
    """Fused operators, and how many there are."""

    output: str
    """The output that differs most."""

    largest_difference: float
    difference_in_standard_deviations: float
    tolerance: float
    """In standard deviations."""

    milliseconds_pytorch: float
    milliseconds_onnx: float
    speed_ratio: float
    """PyTorch's time over ONNX Runtime's: above 1 is faster."""


def optimize_file(
    input_model: Path,
    output_model: Path,
    *,
    graph: str = "hybrid_lm",
    opset: int = 18,
    fusion: bool = False,
    preset: str | None = None,
    tolerance: float | None = None,
) -> Optimisation:
    """Write one graph of the checkpoint `input_model` to `output_model`, compared with PyTorch and timed.

    Raises ValueError where the checkpoint cannot be read, where the graph cannot be written at this opset, or where the
    outputs differ by more than the tolerance (in standard deviations); nothing is written then.
    """
    tolerance = TOLERANCES["fp32"] if tolerance is None else tolerance
    model = load_checkpoint(input_model, preset)
    built = build_models(model, (graph,), opset=opset, fusion=fusion)
    chain = build_models(model, CHAINS.get(graph, ()))
    vocabulary = model.config.vocab_size
    with tempfile.TemporaryDirectory() as folder:
        for name, each in (chain | built).items():
            save_single(each, Path(folder) / f"{name}.onnx")
        runners = (TorchRunner(model), GraphRunner(Path(folder)))
        found = worst(graph_differences(graph, *runners, vocabulary))
        ids_BS, lengths_B = random_rows(vocabulary, TIMED)
        torch_ms, onnx_ms = (median_ms(partial(call, graph, each, ids_BS, lengths_B)) for each in runners)
    check(found, tolerance, f"{graph} against PyTorch")
    written = save_single(built[graph], output_model)
    return Optimisation(
        output_model=str(output_model),
        graph=graph,
        opset=opset,
        parameters=sum(each.numel() for each in model.parameters()),
        bytes_before=size_of(input_model),
        bytes_after=sum(path.stat().st_size for path in written),
        operators=operators_of(built[graph], FUSED),
        output=found.output,
        largest_difference=found.largest,
        difference_in_standard_deviations=found.relative,
        tolerance=tolerance,
        milliseconds_pytorch=torch_ms,
        milliseconds_onnx=onnx_ms,
        speed_ratio=torch_ms / onnx_ms,
    )
