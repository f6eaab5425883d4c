"""Store a graph's weights in fp16, int8 or int4:

    python deploy/quantize.py --input_model model.onnx --output_model model.int8.onnx --precision int8

Weights only: a row's result never depends on its batch mates. The new graph is compared with the old one on random
tokens and refused above a tolerance.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    import onnxruntime as ort

    from deploy.difference import Difference

TRIALS = ([1], [7, 33], [64, 64, 5, 130])
"""Row lengths of the batches that old and new are compared on."""

TIMED = [128]
"""Row lengths of the batch that is timed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantisation:
    """What became of a graph."""

    output_model: str
    precision: str
    bytes_before: int
    bytes_after: int
    operators: dict[str, int]
    """Operators that compute with the narrower weights, and how many there are."""

    output: str
    """The output that differs most."""

    largest_difference: float
    difference_in_standard_deviations: float
    tolerance: float
    """In standard deviations."""

    milliseconds_before: float
    milliseconds_after: float
    speed_ratio: float
    """Old time over new time: above 1 is faster."""


def quantize_file(
    input_model: Path, output_model: Path, precision: str, tolerance: float | None = None
) -> Quantisation:
    """Write `input_model` to `output_model` in another precision, compared and timed.

    Raises ValueError where the input is no float32 graph of this model, or where the outputs differ by more than the
    tolerance (in standard deviations; default: the precision's); nothing is written then.
    """
    from deploy.difference import TOLERANCES, check, worst
    from deploy.feeds import median_ms, random_feeds
    from deploy.graphs.precision import Narrower
    from deploy.graphs.storage import load_graph, save_single
    from deploy.runner import new_session

    if input_model.resolve() == output_model.resolve():
        raise ValueError(f"--output_model {output_model} is the input: choose another file")
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    model = load_graph(input_model)
    vocabulary = vocabulary_of(model)
    converted = Narrower(precision).convert(model)
    with tempfile.TemporaryDirectory() as folder:
        before_files = save_single(model, Path(folder) / "before.onnx")
        after_files = save_single(converted, Path(folder) / "after.onnx")
        sizes = [sum(path.stat().st_size for path in files) for files in (before_files, after_files)]
        old, new = (new_session(files[0]) for files in (before_files, after_files))
        found = worst(each for lengths in TRIALS for each in _differences(old, new, vocabulary, lengths))
        feeds = random_feeds(old, vocabulary, TIMED)
        before_ms, after_ms = (median_ms(partial(each.run, None, feeds)) for each in (old, new))
    check(found, tolerance, precision)
    save_single(converted, output_model)
    return Quantisation(
        output_model=str(output_model),
        precision=precision,
        bytes_before=sizes[0],
        bytes_after=sizes[1],
        operators=operators_of(converted, ("MatMulNBits", "GatherBlockQuantized", "Cast")),
        output=found.output,
        largest_difference=found.largest,
        difference_in_standard_deviations=found.relative,
        tolerance=tolerance,
        milliseconds_before=before_ms,
        milliseconds_after=after_ms,
        speed_ratio=before_ms / after_ms,
    )


def vocabulary_of(model: onnx.ModelProto) -> int:
    """Rows of the table that token ids index; any where the graph takes no ids."""
    from deploy.feeds import FIRST_TEXT_TOKEN

    sizes = {each.name: each.dims[0] for each in model.graph.initializer if each.dims}
    tables = [node.input[0] for node in model.graph.node if node.op_type == "Gather"]
    return max((sizes[name] for name in tables if name in sizes), default=FIRST_TEXT_TOKEN + 1)


def operators_of(model: onnx.ModelProto, kinds: tuple[str, ...]) -> dict[str, int]:
    """How often each of the given operators occurs, those that do not left out."""
    counts = Counter(node.op_type for node in model.graph.node)
    return {kind: counts[kind] for kind in kinds if counts[kind]}


def _differences(
    old: ort.InferenceSession, new: ort.InferenceSession, vocabulary: int, lengths: list[int]
) -> list[Difference]:
    """Every output's difference on one random batch; padding is left out where an output has a source axis."""
    from deploy.difference import difference
    from deploy.feeds import random_feeds, random_rows

    feeds = random_feeds(old, vocabulary, lengths)
    _, lengths_B = random_rows(vocabulary, lengths)
    pairs = zip(old.get_outputs(), old.run(None, feeds), new.run(None, feeds), strict=True)
    return [
        difference(info.name, reference, other, lengths_B if info.shape[1] == "source" else None)
        for info, reference, other in pairs
    ]


if __name__ == "__main__":
    # As a script this folder comes first on the path, where `triton` would hide the compiler of that name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    import typer

    from deploy.commands.quantize import quantize

    typer.run(quantize)
