"""What Triton tells a Python model at its start: the parameters in config.pbtxt, and where its files lie."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from .manifest import MANIFEST_NAME, BundleError, load_manifest, record_file


def read_parameters(args: Mapping[str, str]) -> dict[str, str]:
    """The `parameters` of a model's configuration."""
    parameters = json.loads(args["model_config"]).get("parameters", {})
    return {name: value["string_value"] for name, value in parameters.items()}


def model_folder(args: Mapping[str, str]) -> Path:
    """The folder of the version to load, which holds its part of the bundle.

    Raises:
        BundleError: the configuration was written for another bundle (`bundle`, its name, and `bundle_sha256`, the
            SHA-256 of its manifest.json) than lies here.
    """
    folder, parameters = Path(args["model_repository"]) / args["model_version"], read_parameters(args)
    if "bundle_sha256" in parameters:
        path, expected = folder / MANIFEST_NAME, parameters["bundle_sha256"]
        # Read first: what is no manifest at all is told as such.
        name, found = load_manifest(folder, verify=False).name, record_file(path).sha256
        if found != expected:
            raise BundleError(
                f"config.pbtxt was written for the bundle {parameters.get('bundle', '?')} ({expected[:12]}), {path} "
                f"belongs to {name} ({found[:12]}): build the model repository again (trident repository build "
                "--overwrite)"
            )
    return folder
