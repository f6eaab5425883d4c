"""The models' side of `trident serve`: what the gateway's settings ask for, made ready.

remote:  somebody else's Triton at --triton-url; nothing is started
triton:  a Triton of our own (deploy/server/serving.py)
local:   verify the bundle; the engine runs in the gateway's process
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deploy.server.installation import TritonUnavailable
from deploy.server.serving import Say, TritonChoice, serving
from deploy.triton.manifest import load_manifest
from service.settings import Settings
from service.settings import read_settings as read_gateway_settings


def read_settings(
    *, host: str | None, port: int | None, bundle: Path | None, runtime: str | None, triton_url: str | None
) -> Settings:
    """The environment's settings, with what the command line says instead. Raises ValueError, in one line."""
    given: dict[str, Any] = {
        "bundle": bundle,
        "runtime": runtime,
        "server": _without_none(host=host, port=port),
        "triton": _without_none(url=triton_url),
    }
    return read_gateway_settings(**{name: value for name, value in given.items() if value not in (None, {})})


@contextmanager
def models(settings: Settings, choice: TritonChoice, say: Say) -> Iterator[Settings]:
    """Have the models ready; yields the settings that reach them.

    Raises ValueError (BundleError, TritonFailed, TritonUnavailable) where they cannot be.
    """
    if settings.runtime == "local" or "url" in settings.triton.model_fields_set:
        if choice.backend is not None:
            started = "none is with --runtime local" if settings.runtime == "local" else "one runs at --triton-url"
            raise ValueError(f"--backend {choice.backend} is for a Triton that is started here, and {started}")
        load_manifest(settings.bundle)
        yield settings
        return
    try:
        installation = choice.find()
    except TritonUnavailable as reason:
        if choice.by_name or "runtime" in settings.model_fields_set:
            raise
        say(f"Without Triton, with ONNX Runtime in this process: {reason}")
        load_manifest(settings.bundle)
        yield settings.model_copy(update={"runtime": "local"})
        return
    with serving(settings.bundle, installation, choice, say) as url:
        yield settings.model_copy(update={"triton": settings.triton.model_copy(update={"url": url})})


def _without_none(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}
