"""Writes a bundle: graphs and weights, tokenizer, model card and the manifest that vouches for all of them.

Everything is written to a folder beside the target that changes places with it at the end, so that a bundle is whole or
absent, and an export that fails leaves what stood there before.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from deploy.graphs.storage import write_graphs
from deploy.model_card import render_card
from deploy.replacement import put_in_place, staging_beside
from deploy.triton.manifest import MANIFEST_NAME, CrfScores, Limits, Manifest, load_manifest, record_file
from model.tokenizer import SPECIAL_TOKENS, TOKENIZER_FILES

GRAPHS = "graphs"
TOKENIZER = "tokenizer.json"
COPIED_FILES = (*TOKENIZER_FILES, "special_tokens_map.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class BundleContents:
    """What goes into a bundle, beside the tokenizer."""

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


def write_bundle(contents: BundleContents, tokenizer: Path, output: Path, *, overwrite: bool = False) -> Manifest:
    """Write a bundle to the folder `output` and verify it.

    Args:
        contents: graphs and facts.
        tokenizer: folder with tokenizer.json and tokenizer_config.json.
        output: the bundle's folder; must not exist or be empty, unless `overwrite`.
        overwrite: replace a bundle that stands there.

    Raises:
        ValueError: the output is taken, or the tokenizer does not fit the model.
    """
    special_tokens = read_special_tokens(tokenizer, int(contents.config["vocab_size"]))
    with staging_beside(output) as folder:
        check_output(output, overwrite)
        (folder / GRAPHS).mkdir()
        for name in COPIED_FILES:
            if (tokenizer / name).exists():
                shutil.copyfile(tokenizer / name, folder / name)
        shards = write_graphs(contents.models, folder / GRAPHS)
        (folder / "MODEL_CARD.md").write_text(render_card(contents), encoding="utf-8")
        manifest = _describe(contents, folder, special_tokens, shards)
        (folder / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
        load_manifest(folder)
        put_in_place(folder, output)
    return manifest


def read_special_tokens(tokenizer: Path, vocab_size: int) -> dict[str, int]:
    """Special tokens and their ids in `tokenizer/tokenizer.json`.

    Raises ValueError where the file is missing, where Trident's special tokens have other ids, or where an id does not
    fit a vocabulary of `vocab_size`.
    """
    path = tokenizer / TOKENIZER
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        special = {each["content"]: each["id"] for each in data["added_tokens"] if each["special"]}
        largest = max([*data["model"]["vocab"].values(), *(each["id"] for each in data["added_tokens"])])
    except FileNotFoundError:
        raise ValueError(f"{path} does not exist: train one with `trident data tokenizer`") from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a tokenizer of the `tokenizers` library ({error!r})") from None
    wrong = [f"{name}={special.get(name)}" for index, name in enumerate(SPECIAL_TOKENS) if special.get(name) != index]
    if wrong:
        raise ValueError(
            f"{path} has other ids for special tokens ({', '.join(wrong)}): train one with `trident data tokenizer`"
        )
    if largest >= vocab_size:
        raise ValueError(f"{path} has ids up to {largest}, the model's vocabulary ends at {vocab_size - 1}")
    return dict(sorted(special.items(), key=lambda item: item[1]))


def _describe(
    contents: BundleContents, folder: Path, special_tokens: Mapping[str, int], shards: Mapping[str, tuple[str, ...]]
) -> Manifest:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return Manifest(
        name=contents.name,
        preset=contents.preset,
        precision=contents.precision,
        opset=contents.opset,
        config=contents.config,
        graphs={name: f"{GRAPHS}/{name}.onnx" for name in contents.models},
        weights={name: tuple(f"{GRAPHS}/{shard}" for shard in used) for name, used in shards.items()},
        special_tokens=special_tokens,
        limits=contents.limits,
        crf=contents.crf,
        license=contents.license,
        files={name: record_file(folder / name) for name in files},
        provenance=contents.provenance,
        evaluation=contents.evaluation,
        quantization=contents.quantization,
    )


def check_output(output: Path, overwrite: bool) -> None:
    """Before the work, and once more before anything is replaced. Raises ValueError where the output is taken."""
    if not output.exists():
        return
    is_bundle = (output / MANIFEST_NAME).is_file()
    if not is_bundle and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output} exists and is no bundle: choose another output folder")
    if is_bundle and not overwrite:
        raise ValueError(f"{output} already holds a bundle: choose another output folder, or pass --overwrite")
