"""From a bundle to a Triton that answers:

verify the bundle ─▶ build the repository, or share it ─▶ start a server ─▶ wait until it is ready
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from deploy.repository.build import Repository, repository_in_use
from deploy.repository.occupancy import RepositoryInUse
from deploy.repository.profiles import PROFILES, Backend, ProfileName
from deploy.server.installation import Installation, TritonUnavailable, find_installation
from deploy.server.launcher import LaunchPlan
from deploy.server.supervisor import Supervisor

Say = Callable[[str], None]

REPOSITORY = Path("model_repository")
"""Where the repository stands unless a folder is named: beside it, with a number, where others serve another one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TritonChoice:
    """Which Triton to start, and how."""

    environment: Path | None
    """Of the embedded server; None is `TRITON_ENV` where that exists, else a server on PATH."""

    backends: Path | None
    """Further backends for the embedded server."""

    backend: Backend | None
    """None is the native one where the server has it."""

    repository: Path | None
    """None is `REPOSITORY`, or a folder beside it."""

    profile: ProfileName
    start_timeout_s: float

    @property
    def by_name(self) -> bool:
        """Whether something of it was asked for by name: without it, nothing else will do."""
        return any(each is not None for each in (self.environment, self.backends, self.backend))

    def find(self) -> Installation:
        """The server to start. Raises TritonUnavailable where there is none, or not with what was asked for."""
        found = find_installation(self.environment, self.backends)
        if self.backend is not None and self.backend not in found.backends:
            has = ", ".join(sorted(found.backends))
            raise TritonUnavailable(
                f"{found.origin} has no {self.backend} backend: take --backend {has}, or name a folder that holds it "
                "with --triton-backends"
            )
        return found


@contextmanager
def serving(bundle: Path, installation: Installation, choice: TritonChoice, say: Say) -> Iterator[str]:
    """A Triton that is ready; yields its host:port.

    Raises ValueError (BundleError, TritonFailed) where it cannot be had.
    """
    with ExitStack() as stack:
        repository = _repository(bundle, installation, choice, stack)
        state = "built" if repository.rebuilt else "up to date"
        say(f"Model repository {repository.path}: {repository.bundle}, {repository.backend} backend, {state}")
        say(f"Starting Triton ({installation.origin})")
        plan = LaunchPlan.temporary(installation, Path(repository.path))
        supervisor = stack.enter_context(Supervisor(plan, start_timeout_s=choice.start_timeout_s))
        with Console(stderr=True).status("Loading models"):
            supervisor.wait_until_ready()
        say(f"Triton is ready on {plan.url}, its metrics on {plan.metrics_url}, its log in {plan.log}")
        yield plan.url


def _repository(bundle: Path, installation: Installation, choice: TritonChoice, stack: ExitStack) -> Repository:
    """The repository to serve from, kept from being replaced as long as the stack is open."""
    native = Backend.ONNXRUNTIME in installation.backends
    backend = choice.backend or (Backend.ONNXRUNTIME if native else Backend.PYTHON)
    profile = PROFILES[choice.profile]
    if choice.repository is not None:
        return stack.enter_context(repository_in_use(bundle, choice.repository, backend=backend, profile=profile))
    folder, number = REPOSITORY, 1
    while True:
        try:
            return stack.enter_context(repository_in_use(bundle, folder, backend=backend, profile=profile))
        except RepositoryInUse:
            number += 1
            folder = REPOSITORY.with_name(f"{REPOSITORY.name}-{number}")
