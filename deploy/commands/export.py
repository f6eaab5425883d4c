"""`trident export`, and `python deploy/optimize_for_inference.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.triton.manifest import Precision, load_manifest


def export(
    checkpoint: Annotated[
        Path, typer.Argument(help="Folder, .safetensors or .pt file of the trained network, or a bundle.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The bundle's folder.")],
    tokenizer: Annotated[Path, typer.Option(help="Folder with tokenizer.json and tokenizer_config.json.")],
    precision: Annotated[Precision, typer.Option(help="Of the weights; fp16 computes in it.")] = Precision.INT8,
    opset: Annotated[int, typer.Option(help="Version of the ONNX operators, 15 to 22.")] = 18,
    preset: Annotated[
        str | None, typer.Option(help="The network's preset.", show_default="as its config.json, or its shapes, say")
    ] = None,
    name: Annotated[str | None, typer.Option(help="The bundle's name.", show_default="trident-PRESET")] = None,
    license: Annotated[  # noqa: A002
        str | None, typer.Option(help="SPDX expression of the weights' licence.", show_default="as in --provenance")
    ] = None,
    provenance: Annotated[Path | None, typer.Option(help="JSON object: sources, their licences, training.")] = None,
    evaluation: Annotated[Path | None, typer.Option(help="JSON object: what was measured, for the model card.")] = None,
    samples: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines of task, input, context: texts to compare with PyTorch.", show_default="built in"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a bundle that stands at --output.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Write a bundle: all graphs of a network, its tokenizer, model card and manifest."""
    from deploy.bundle.checkpoints import is_bundle, load_checkpoint
    from deploy.bundle.export import export_bundle
    from deploy.commands.output import failing_plainly, read_object
    from deploy.parity.samples import DEFAULT_SAMPLES, load_samples

    with failing_plainly():
        # What is known of a bundle's weights holds for them in another precision.
        former = load_manifest(checkpoint) if is_bundle(checkpoint) else None
        manifest = export_bundle(
            load_checkpoint(checkpoint, preset),
            tokenizer,
            output,
            precision=precision.value,
            opset=opset,
            name=former.name if name is None and former else name,
            license=former.license if license is None and former else license,
            provenance=former.provenance if provenance is None and former else read_object(provenance),
            evaluation=read_object(evaluation),
            samples=DEFAULT_SAMPLES if samples is None else load_samples(samples),
            overwrite=overwrite,
        )
    size = sum(record.bytes for record in manifest.files.values())
    typer.echo(manifest.to_json() if json else f"{output}: {manifest.name}, {manifest.precision}, {size / 1e6:.1f} MB")


def optimize(
    input_model: Annotated[
        Path, typer.Option("--input_model", "--input-model", help="Folder, .safetensors or .pt file.")
    ],
    output_model: Annotated[Path, typer.Option("--output_model", "--output-model", help="The ONNX file to write.")],
    opset: Annotated[int, typer.Option(help="Version of the ONNX operators, 15 to 22.")] = 18,
    enable_fusion: Annotated[
        bool, typer.Option("--enable_fusion", "--enable-fusion", help="Emit ONNX Runtime's fused operators.")
    ] = False,
    graph: Annotated[str, typer.Option(help="Which graph of the network to write.")] = "hybrid_lm",
    preset: Annotated[
        str | None, typer.Option(help="The network's preset.", show_default="as its config.json, or its shapes, say")
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest difference allowed, in standard deviations of the output.", show_default="0.001"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Write one graph of a trained network as ONNX; says its size, its difference from PyTorch and its speed."""
    from deploy.bundle.optimisation import optimize_file
    from deploy.commands.output import failing_plainly, print_report

    with failing_plainly():
        report = optimize_file(
            input_model,
            output_model,
            graph=graph,
            opset=opset,
            fusion=enable_fusion,
            preset=preset,
            tolerance=tolerance,
        )
        print_report(report, as_json=json)
