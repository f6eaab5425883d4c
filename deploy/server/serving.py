"""From a bundle to a Triton that answers:

verify the bundle ─▶ build the repository ─▶ start a server ─▶ wait until it is ready
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from deploy.repository.build import build_repository
from deploy.repository.profiles import PROFILES, Backend, ProfileName
from deploy.server.installation import Installation
from deploy.server.launcher import LaunchPlan
from deploy.server.supervisor import Supervisor

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


@contextmanager
def serving(bundle: Path, installation: Installation, choice: TritonChoice, say: Say) -> Iterator[str]:
    """A Triton that is ready; yields its host:port.

    Raises ValueError (BundleError, TritonFailed) where it cannot be had.
    """
    native = Backend.ONNXRUNTIME in installation.backends
    repository = build_repository(
        bundle,
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
