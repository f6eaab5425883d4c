"""Reads a network from a checkpoint of any form, or back from a bundle."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from deploy.bundle.shapes import config_of_shapes, preset_with_heads
from deploy.bundle.storage import load_graph
from deploy.graphs.weights import restore_weights
from deploy.triton.manifest import MANIFEST_NAME, load_manifest
from model.configuration import HybridConfig
from model.network import HybridModel

if TYPE_CHECKING:
    from torch import Tensor

REFUSED = re.compile(r"GLOBAL ([\w.]+) was not an allowed global")
"""How torch.load names a class that it does not load with weights_only=True."""

WEIGHT_KEYS = ("model", "state_dict", "weights")
"""Names under which a `.pt` may hold its weights, beside its configuration under `config`."""


def load_checkpoint(path: Path, preset: str | None = None) -> HybridModel:
    """The network in a checkpoint, float32, in evaluation mode.

    Args:
        path: a folder as `save_pretrained` writes it, a `.safetensors` file, a `.pt` file, which is loaded with
            `weights_only=True`, or a bundle, whose weights come out byte for byte in its own precision.
        preset: the configuration, in place of the checkpoint's own: of a `config.json` beside it, of the `.pt`, or of
            the preset that its tensors' shapes fit.

    Raises:
        ValueError: no such checkpoint, no configuration, or weights that do not fit it.
    """
    if is_bundle(path):
        bundled = load_bundle_model(path)
        weights = bundled.state_dict()
        return bundled if preset is None else model_of(preset_with_heads(preset, weights), weights, str(path))
    if path.is_dir():
        found = _weight_files(path)
        if len(found) != 1:
            raise ValueError(f"{path} must hold one .safetensors or .pt file, found {len(found)}: name the file itself")
        path = found[0]
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give a checkpoint's folder, .safetensors or .pt file")
    fields, weights = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    beside = path.parent / "config.json"
    if fields is None and preset is None and beside.is_file():
        fields = json.loads(beside.read_text(encoding="utf-8"))
    if preset is not None:
        config = preset_with_heads(preset, weights)
    elif fields is not None:
        config = HybridConfig.from_dict(dict(fields))
    else:
        config = config_of_shapes(weights, str(path))
    return model_of(config, weights, str(path))


def is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle's."""
    return (path / MANIFEST_NAME).is_file()


def load_bundle_model(bundle: Path) -> HybridModel:
    """The network whose weights a bundle's graphs compute with: dequantised, exactly scale · (q - zero).

    Raises BundleError where the bundle is damaged.
    """
    manifest = load_manifest(bundle)
    weights = restore_weights(load_graph(bundle / name) for name in manifest.graphs.values())
    tensors = {key: torch.from_numpy(array.copy()) for key, array in weights.items()}
    scores = {"start": manifest.crf.start, "transition": manifest.crf.transition, "end": manifest.crf.end}
    tensors |= {f"extractive.crf.{part}": torch.tensor(values) for part, values in scores.items()}
    return model_of(HybridConfig.from_dict(dict(manifest.config)), tensors, str(bundle))


def size_of(checkpoint: Path) -> int:
    """Bytes of a checkpoint's weights."""
    files = _weight_files(checkpoint) if checkpoint.is_dir() else [checkpoint]
    return sum(each.stat().st_size for each in files)


def model_of(config: HybridConfig, weights: Mapping[str, Tensor], source: str) -> HybridModel:
    """A network with the given weights. Raises ValueError naming what is missing, unknown or of another shape."""
    model = HybridModel(config)
    tied = {key for key in model.state_dict() if key not in weights} & set(model.all_tied_weights_keys)
    try:
        missing, unknown = model.load_state_dict({key: each.float() for key, each in weights.items()}, strict=False)
    except RuntimeError as error:
        raise ValueError(f"{source} does not fit its configuration: {error}") from None
    lost = [key for key in missing if key not in tied]
    if lost or unknown:
        raise ValueError(f"{source} does not fit its configuration: missing {lost[:5]}, unknown {unknown[:5]}")
    return model.eval()


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.pt"))


def _read_safetensors(path: Path) -> tuple[None, dict[str, Tensor]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return None, load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from None


def _read_torch(path: Path) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        # Junk fails wherever the unpickler stumbles, as struct.error, KeyError, IndexError …
        # Of a refused class torch tells at length how to load it all the same.
        reason = "it is no archive of torch.save"
        if refused := REFUSED.search(str(error)):
            reason = f"it holds an object of the class {refused[1]}; save a model's state_dict() in place of the model"
        raise ValueError(f"{path} is not a .pt file of tensors (loaded with weights_only=True): {reason}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary of tensors, not {type(content).__name__}")
    fields = content.get("config")
    nested = next((content[key] for key in WEIGHT_KEYS if isinstance(content.get(key), dict)), None)
    weights = content if nested is None else nested
    return fields, {key: each for key, each in weights.items() if isinstance(each, torch.Tensor)}
