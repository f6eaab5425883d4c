"""From a bundle to something that answers: the models' side of `trident serve`.

remote:  somebody else's Triton at --triton-url; nothing is started
triton:  verify the bundle ─▶ build the repository ─▶ start a server ─▶ wait until it is ready
local:   verify the bundle; the engine runs in the gateway's process
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from deploy.installation import Installation, TritonUnavailable, find_installation
from deploy.launcher import LaunchPlan
from deploy.profiles import PROFILES, Backend, ProfileName
from deploy.repository import build_repository
from deploy.supervisor import Supervisor
from deploy.triton.manifest import load_manifest
from service.settings import Settings

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonChoice:
    """Which Triton to start, and how."""

    environment: Path
    backends: Path | None
    """Further backends for the embedded server."""

    backend: Backend | None
    """None is the native one where the server has it."""

    repository: Path
    profile: ProfileName
    start_timeout_s: float


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
    try:
        return Settings(**{name: value for name, value in given.items() if value not in (None, {})})
    except ValidationError as error:
        wrong = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}, got {each['input']!r}" for each in error.errors())
        raise ValueError("; ".join(wrong)) from None


@contextmanager
def models(settings: Settings, choice: TritonChoice, say: Say) -> Iterator[Settings]:
    """Have the models ready; yields the settings that reach them.

    Raises ValueError (BundleError, TritonFailed, TritonUnavailable) where they cannot be.
    """
    if settings.runtime == "local" or "url" in settings.triton.model_fields_set:
        load_manifest(settings.bundle)
        yield settings
        return
    try:
        installation = find_installation(choice.environment, choice.backends)
    except TritonUnavailable as reason:
        if "runtime" in settings.model_fields_set:
            raise
        say(f"Without Triton, with ONNX Runtime in this process: {reason}")
        load_manifest(settings.bundle)
        yield settings.model_copy(update={"runtime": "local"})
        return
    with _running(installation, settings, choice, say) as url:
        yield settings.model_copy(update={"triton": settings.triton.model_copy(update={"url": url})})


@contextmanager
def _running(installation: Installation, settings: Settings, choice: TritonChoice, say: Say) -> Iterator[str]:
    """A Triton that is ready; yields its host:port."""
    native = Backend.ONNXRUNTIME in installation.backends
    repository = build_repository(
        settings.bundle,
        choice.repository,
        backend=choice.backend or (Backend.ONNXRUNTIME if native else Backend.PYTHON),
        profile=PROFILES[choice.profile],
    )
    state = "built" if repository.rebuilt else "up to date"
    say(f"Model repository {choice.repository}: {repository.bundle}, {repository.backend} backend, {state}")
    say(f"Starting Triton ({installation.origin})")
    plan = LaunchPlan.temporary(installation, choice.repository)
    with Supervisor(plan, start_timeout_s=choice.start_timeout_s) as supervisor:
        with Console(stderr=True).status("Loading models"):
            supervisor.wait_until_ready()
        say(f"Triton is ready on {plan.url}, its metrics on {plan.metrics_url}, its log in {plan.log}")
        yield plan.url


def _without_none(**values: object) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}
