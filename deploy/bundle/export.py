"""From a trained network to a bundle: graphs, weights in the precision asked for, and what that precision cost."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from deploy.bundle.contents import BundleContents
from deploy.bundle.replacement import recover
from deploy.bundle.sensitivity import IntegerForms
from deploy.bundle.storage import write_graphs
from deploy.bundle.writer import check_output, write_bundle
from deploy.graphs.catalog import DEFAULT_OPSET, GRAPHS, build_graph
from deploy.graphs.precision import BITS, converter
from deploy.parity.difference import TOLERANCES
from deploy.triton.manifest import CrfScores, Limits, Manifest, Precision

if TYPE_CHECKING:
    from deploy.parity.samples import Sample
    from model.network import HybridModel


def export_bundle(
    model: HybridModel,
    tokenizer: Path,
    output: Path,
    *,
    precision: str = "fp32",
    opset: int = DEFAULT_OPSET,
    name: str | None = None,
    license: str | None = None,  # noqa: A002 — SPDX's and the manifest's word for it
    provenance: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    samples: Sequence[Sample] = (),
    overwrite: bool = False,
) -> Manifest:
    """Write the bundle of a network.

    Args:
        model: the network, any dtype.
        tokenizer: folder with tokenizer.json and tokenizer_config.json.
        output: the bundle's folder.
        precision: fp32; fp16, which computes in it, as GPUs do best; int8 or int4, in which weights are stored.
        opset: version of the standard operators, 16 or more.
        name: the bundle's name; default `trident-PRESET`.
        license: SPDX expression of the weights' licence; default: the provenance's `license`.
        provenance: where the weights come from, for manifest and card.
        evaluation: what was measured, for manifest and card.
        samples: texts on which PyTorch and the bundle are compared, for manifest and card; none skips the comparison.
        overwrite: replace a bundle at `output`.

    Raises:
        ValueError: an unknown precision, a taken output, a tokenizer that does not fit, or graphs that differ from
            PyTorch by more than the precision's tolerance.
    """
    if precision not in list(Precision):
        raise ValueError(f"precision must be one of {', '.join(Precision)}, got {precision!r}")
    recover(output)
    check_output(output, overwrite)
    provenance = dict(provenance or {})
    config = config_fields(model)
    models = build_models(model, precision=precision, opset=opset)
    quantization = _compare(model, models, tokenizer, samples, precision) if samples else {}
    contents = BundleContents(
        name=name or f"trident-{model.config.preset}",
        preset=model.config.preset,
        precision=precision,
        opset=opset,
        config=config,
        parameters=sum(each.numel() for each in model.parameters()),
        models=models,
        crf=crf_scores(model),
        limits=Limits(
            max_source_tokens=config["max_positions"],
            max_target_tokens=config["max_target_positions"],
            max_answer_tokens=config["max_answer_tokens"],
        ),
        license=license or str(provenance.get("license", "NOASSERTION")),
        provenance=provenance,
        evaluation=dict(evaluation or {}),
        quantization=quantization,
    )
    return write_bundle(contents, tokenizer, output, overwrite=overwrite)


def build_models(
    model: HybridModel,
    graphs: Sequence[str] = tuple(GRAPHS),
    *,
    precision: str = "fp32",
    opset: int = DEFAULT_OPSET,
    fusion: bool = True,
) -> dict[str, onnx.ModelProto]:
    """The given graphs of a network, in memory. Raises ValueError for what `build_graph` refuses."""
    weights = state_arrays(model)
    built = {name: build_graph(name, model.config, weights, opset=opset, fusion=fusion) for name in graphs}
    if precision == "fp32":
        return built
    convert = converter(precision)
    stored = {name: convert(graph) for name, graph in built.items()}
    if precision not in BITS:
        return stored
    forms = IntegerForms(model.config.vocab_size)
    return {name: forms.convert(graph) for name, graph in stored.items()}


def state_arrays(model: HybridModel) -> dict[str, np.ndarray]:
    """The network's parameters and buffers as float32 arrays."""
    return {key: tensor.detach().float().cpu().numpy() for key, tensor in model.state_dict().items()}


def config_fields(model: HybridModel) -> dict[str, Any]:
    """The dimensions in the configuration, without what transformers adds to it."""
    return {name: getattr(model.config, name) for name in model.config.dimensions()}


def crf_scores(model: HybridModel) -> CrfScores:
    """The span CRF's parameters as plain numbers."""
    start, transition, end = (
        getattr(model.extractive.crf, part).detach().float().tolist() for part in ("start", "transition", "end")
    )
    return CrfScores(start=tuple(start), transition=tuple(map(tuple, transition)), end=tuple(end))


def _compare(
    model: HybridModel,
    models: Mapping[str, onnx.ModelProto],
    tokenizer: Path,
    samples: Sequence[Sample],
    precision: str,
) -> dict[str, Any]:
    """Run the samples through PyTorch and through the graphs as they will be stored."""
    from deploy.parity.agreement import measure
    from deploy.parity.graph_runner import GraphRunner
    from deploy.parity.samples import encode_samples
    from deploy.parity.torch_runner import TorchRunner

    reference = TorchRunner(model)
    sources = encode_samples(tokenizer, samples, limit=model.config.max_positions)
    with tempfile.TemporaryDirectory() as folder:
        write_graphs(models, Path(folder))
        agreement = measure(reference, GraphRunner(Path(folder)), sources, reference.best_span)
    agreement.check(TOLERANCES[precision])
    return asdict(agreement)
