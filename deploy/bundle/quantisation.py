"""Writes one graph in fp16, int8 or int4, and says what that cost.

In int8 and int4 rows are rounded each by itself, so a row's result never depends on its batch mates. The new graph is
compared with the old one on random tokens and refused above a tolerance.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx
import onnxruntime as ort

from deploy.bundle.sensitivity import IntegerForms
from deploy.bundle.storage import load_graph, operators_of, save_single
from deploy.graphs.precision import BITS, converter
from deploy.parity.difference import TOLERANCES, Difference, check, difference, worst
from deploy.parity.feeds import FIRST_TEXT_TOKEN, TIMED, TRIALS, median_ms, random_feeds, random_rows, typed
from deploy.triton.sessions import open_session

NARROW = ("MatMulIntegerToFloat", "Scan", "MatMulNBits", "GatherBlockQuantized", "Cast")
"""Operators of narrower weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantisation:
    """What became of a graph."""

    output_model: str
    precision: str
    bytes_before: int
    bytes_after: int
    operators: dict[str, int]
    """Operators that compute with the narrower weights, and how many there are."""

    kept: list[str]
    """Weights whose products stay in blocks, for whole rows of 8 bits would cost too much."""

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
    if input_model.resolve() == output_model.resolve():
        raise ValueError(f"--output_model {output_model} is the input: choose another file")
    tolerance = TOLERANCES[precision] if tolerance is None else tolerance
    model = load_graph(input_model)
    vocabulary = vocabulary_of(model)
    converted = converter(precision)(model)
    forms = IntegerForms(vocabulary)
    if precision in BITS:
        converted = forms.convert(converted)
    with tempfile.TemporaryDirectory() as folder:
        before_files = save_single(model, Path(folder) / "before.onnx")
        after_files = save_single(converted, Path(folder) / "after.onnx")
        sizes = [sum(path.stat().st_size for path in files) for files in (before_files, after_files)]
        old, new = (open_session(files[0]) for files in (before_files, after_files))
        found = worst(each for lengths in TRIALS for each in _differences(old, new, vocabulary, lengths))
        feeds = random_feeds(old, vocabulary, TIMED)
        before_ms, after_ms = (median_ms(partial(each.run, None, typed(each, feeds))) for each in (old, new))
    check(found, tolerance, precision)
    save_single(converted, output_model)
    return Quantisation(
        output_model=str(output_model),
        precision=precision,
        bytes_before=sizes[0],
        bytes_after=sizes[1],
        operators=operators_of(converted, NARROW),
        kept=forms.kept,
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
    sizes = {each.name: each.dims[0] for each in model.graph.initializer if each.dims}
    tables = [node.input[0] for node in model.graph.node if node.op_type == "Gather"]
    return max((sizes[name] for name in tables if name in sizes), default=FIRST_TEXT_TOKEN + 1)


def _differences(
    old: ort.InferenceSession, new: ort.InferenceSession, vocabulary: int, lengths: Sequence[int]
) -> list[Difference]:
    """Every output's difference on one random batch; padding is left out where an output has a source axis."""
    feeds = random_feeds(old, vocabulary, lengths)
    _, lengths_B = random_rows(vocabulary, lengths)
    pairs = zip(old.get_outputs(), *(each.run(None, typed(each, feeds)) for each in (old, new)), strict=True)
    return [
        difference(info.name, reference, other, lengths_B if info.shape[1] == "source" else None)
        for info, reference, other in pairs
    ]
