"""The encoder beside CTranslate2's, int8 both, on as many threads, in turns:

    pip install ctranslate2        # no part of the project's environments
    python -m tests.deploy.benchmark.against_ctranslate2 --bundle model/pretrained --output encoder.json

CTranslate2 runs an encoder of the same products with random weights; ours runs as it is, and cut before its hybrid
layer, which CTranslate2 has no form of.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
import onnx
from ctranslate2.specs import common_spec, model_spec, transformer_spec

from deploy.benchmark.turns import Case, in_turns, read_case
from deploy.parity.feeds import random_rows
from deploy.triton.manifest import load_manifest
from deploy.triton.sessions import open_session

CASES = ("encoder:1x182", "encoder:1x512", "encoder:8x384")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    config = load_manifest(options.bundle, verify=False).config
    with tempfile.TemporaryDirectory() as folder:
        save_encoder(config, Path(folder) / "ctranslate2")
        peer = ctranslate2.Encoder(
            str(Path(folder) / "ctranslate2"), compute_type="int8", inter_threads=1, intra_threads=options.threads
        )
        cases = [measure(read_case(each), options, peer, int(config["vocab_size"])) for each in CASES]
    result = {"what": "turns", "threads": options.threads, "ctranslate2": ctranslate2.__version__, "cases": cases}
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for case in cases:
        for name, times in case["times"].items():
            medians = (f"{np.median(times[unit]):.0f}" for unit in ("wall_ms", "processor_ms"))
            print(case["rows"], "x", case["tokens"], name, "wall ms {}, processor ms {}".format(*medians))


def measure(case: Case, options: argparse.Namespace, peer: ctranslate2.Encoder, vocabulary: int) -> dict[str, Any]:
    """Raw times of one batch."""
    ids_BS, lengths_B = random_rows(vocabulary, [case.tokens] * case.rows)
    feeds = {"input_ids": ids_BS, "lengths": lengths_B}
    path = options.bundle / "graphs/encoder.onnx"
    cut = cut_before_hybrid(path)
    try:
        whole, base = (open_session(each, threads=options.threads, keeps_memory=False) for each in (path, cut))
    finally:
        cut.unlink()
    runs = {
        "trident, without hybrid layer": partial(base.run, None, feeds),
        "ctranslate2": lambda: np.array(peer.forward_batch(ids_BS.tolist()).last_hidden_state),
        "trident": partial(whole.run, None, feeds),
    }
    times = in_turns(runs, options.repeats)
    return {"graph": case.graph, "rows": case.rows, "tokens": case.tokens, "times": times}


def cut_before_hybrid(path: Path) -> Path:
    """A copy of the graph, beside it for its weights, that ends with the base encoder's last normalisation."""
    model = onnx.load(str(path), load_external_data=False)
    last = next(node for node in model.graph.node if "encoder.norm.weight" in node.input)
    # ONNX Runtime runs nodes that no output needs.
    needed, kept = set(last.output), []
    for node in reversed(model.graph.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.insert(0, node)
    del model.graph.node[:], model.graph.output[:]
    model.graph.node.extend(kept)
    model.graph.output.append(onnx.helper.make_tensor_value_info(last.output[0], onnx.TensorProto.FLOAT, None))
    cut = path.with_name("encoder-without-hybrid.onnx")
    cut.write_bytes(model.SerializeToString())
    return cut


def save_encoder(config: dict[str, Any], folder: Path) -> None:
    """CTranslate2's pre-norm encoder of these dimensions, random weights."""
    width, inner = int(config["d_model"]), int(config["encoder_ffn"])
    encoder = transformer_spec.TransformerEncoderSpec(
        int(config["encoder_layers"]), int(config["num_heads"]), activation=common_spec.Activation.GELU
    )
    random = np.random.default_rng(0)

    def matrix(*shape: int) -> np.ndarray:
        return (random.standard_normal(shape) * 0.02).astype(np.float32)

    def fill(layer: model_spec.LayerSpec, rows: int, columns: int) -> None:
        layer.weight, layer.bias = matrix(rows, columns), np.zeros(rows, np.float32)

    def normal(layer: model_spec.LayerSpec) -> None:
        layer.gamma, layer.beta = np.ones(width, np.float32), np.zeros(width, np.float32)

    encoder.embeddings[0].weight = matrix(int(config["vocab_size"]), width)
    encoder.position_encodings.encodings = matrix(int(config["max_positions"]), width)
    for layer in encoder.layer:
        fill(layer.self_attention.linear[0], 3 * width, width)
        fill(layer.self_attention.linear[1], width, width)
        fill(layer.ffn.linear_0, inner, width)
        fill(layer.ffn.linear_1, width, inner)
        normal(layer.self_attention.layer_norm)
        normal(layer.ffn.layer_norm)
    normal(encoder.layer_norm)
    spec = transformer_spec.TransformerEncoderModelSpec(encoder)
    spec.register_vocabulary([f"<{each}>" for each in range(int(config["vocab_size"]))])
    spec.config.unk_token = "<0>"
    spec.validate()
    spec.optimize(quantization="int8")
    folder.mkdir()
    spec.save(str(folder))


if __name__ == "__main__":
    main()
