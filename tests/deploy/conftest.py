"""A real Triton from `.venv-triton` with the nano bundle."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.repository.build import build_repository
from deploy.repository.profiles import Backend, Profile
from deploy.server.installation import Installation, find_installation, why_no_wheel
from deploy.server.launcher import LaunchPlan
from deploy.server.supervisor import Supervisor

ONE_THREAD = Profile(name="tests", threads=1)


@pytest.fixture(scope="session")
def installation() -> Installation:
    """The embedded server; tests are skipped only on machines that it cannot run on."""
    reason = why_no_wheel()
    if reason is not None:
        pytest.skip(reason)
    return find_installation()


@pytest.fixture(scope="session")
def nano_repository(tmp_path_factory: pytest.TempPathFactory, nano_bundle: Path) -> Path:
    """The nano bundle for the Python backend."""
    folder = tmp_path_factory.mktemp("repositories") / "nano"
    build_repository(nano_bundle, folder, backend=Backend.PYTHON, profile=ONE_THREAD)
    return folder


@pytest.fixture(scope="session")
def triton_url(installation: Installation, nano_repository: Path) -> Iterator[str]:
    """A running Triton for tests that leave it as they found it."""
    with Supervisor(LaunchPlan.temporary(installation, nano_repository)) as supervisor:
        supervisor.wait_until_ready()
        yield supervisor.plan.url
