"""`trident quantize`, also `python deploy/quantize.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.triton.manifest import Precision


def narrower(precision: Precision) -> Precision:
    """Raises BadParameter for what a graph is stored in before it is quantised."""
    if precision is Precision.FP32:
        raise typer.BadParameter("a graph of float32 weights is what is read: choose fp16, int8 or int4")
    return precision


def quantize(
    input_model: Annotated[Path, typer.Option("--input_model", "--input-model", help="A float32 ONNX graph.")],
    output_model: Annotated[Path, typer.Option("--output_model", "--output-model", help="Where to write the result.")],
    precision: Annotated[
        Precision, typer.Option(help="fp16 computes in it.", metavar="[fp16|int8|int4]", callback=narrower)
    ] = Precision.INT8,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest difference allowed, in standard deviations of the output.", show_default="by precision"
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write a graph in fp16, or with its weights in int8 or int4; says what that cost and gained."""
    from deploy.bundle.quantisation import quantize_file
    from deploy.commands.output import failing_plainly, print_report

    with failing_plainly():
        print_report(quantize_file(input_model, output_model, precision.value, tolerance), as_json=json)
