"""What Triton tells a Python model at its start: the parameters in config.pbtxt, and where its files lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from .manifest import BundleError, bundle_digest, load_manifest


def read_parameters(args: Mapping[str, str]) -> dict[str, str]:
    """The `parameters` of a model's configuration."""
    parameters = json.loads(args["model_config"]).get("parameters", {})
    return {name: value["string_value"] for name, value in parameters.items()}


def model_folder(args: Mapping[str, str]) -> Path:
    """The folder of the version to load, which holds its part of the bundle.

    Raises:
        BundleError: another bundle lies there than the configuration was written for (`bundle`, its name, and
            `bundle_sha256`, its digest).
    """
    folder, parameters = Path(args["model_repository"]) / args["model_version"], read_parameters(args)
    expected = parameters.get("bundle_sha256")
    if expected is not None and (found := bundle_digest(folder)) != expected:
        raise BundleError(
            f"config.pbtxt was written for the bundle {parameters.get('bundle', '?')} ({expected[:12]}), but {folder} "
            f"holds {load_manifest(folder, verify=False).name} ({found[:12]}): build the model repository again "
            "(trident repository build --overwrite)"
        )
    return folder
