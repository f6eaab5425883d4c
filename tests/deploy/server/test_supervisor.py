"""A Triton under supervision: it starts, comes back when it dies, ends with its parent, and fails in words."""

from __future__ import annotations

import logging
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from deploy.server.installation import Installation
from deploy.server.launcher import LaunchPlan, TritonFailed, answers_ready
from deploy.server.supervisor import Supervisor
from tests.waiting import wait_until

MODEL_PROCESSES = 4
SHARED_MEMORY = Path("/dev/shm")


def server_processes(plan: LaunchPlan) -> list[psutil.Process]:
    """The server of a plan, by the port on its command line."""
    return servers_on(plan.grpc_port)


def servers_on(port: int) -> list[psutil.Process]:
    """The servers that were started with a port."""
    found = psutil.process_iter(["name", "cmdline"])
    return [
        each
        for each in found
        if each.info["name"] == "tritonserver" and f"--grpc-port={port}" in (each.info["cmdline"] or [])
    ]


def is_ready(plan: LaunchPlan) -> bool:
    """Whether a server answers on the plan's port, asked from outside."""
    return bool(server_processes(plan)) and answers_ready(plan.url)


@pytest.fixture
def plan(installation: Installation, nano_repository: Path) -> Iterator[LaunchPlan]:
    """A plan that leaves no folder behind, however its test ends."""
    plan = LaunchPlan.temporary(installation, nano_repository)
    yield plan
    assert not server_processes(plan)
    plan.discard()


def test_a_stopped_server_leaves_nothing_behind(plan: LaunchPlan) -> None:
    regions = set(SHARED_MEMORY.iterdir())
    with Supervisor(plan) as supervisor:
        supervisor.wait_until_ready()
        (server,) = server_processes(plan)
        family = [server, *server.children()]
        assert len(family) == 1 + MODEL_PROCESSES
        assert len(set(SHARED_MEMORY.iterdir()) - regions) == MODEL_PROCESSES
    assert not any(each.is_running() for each in family)
    assert set(SHARED_MEMORY.iterdir()) <= regions
    assert not plan.folder.exists()


def test_a_server_starts_with_the_safe_options(plan: LaunchPlan) -> None:
    with Supervisor(plan) as supervisor:
        supervisor.wait_until_ready()
        (server,) = server_processes(plan)
        options = server.cmdline()[1:]
        sockets = [each for each in server.net_connections("inet") if each.status == psutil.CONN_LISTEN]
    assert {
        "--model-control-mode=none",
        "--disable-auto-complete-config",
        "--exit-on-error=true",
        "--strict-readiness=true",
        "--log-verbose=0",
    } <= set(options)
    assert {each.laddr.port for each in sockets} == {plan.grpc_port, plan.metrics_port}
    assert {each.laddr.ip.removeprefix("::ffff:") for each in sockets} == {"127.0.0.1"}


@pytest.mark.parametrize("victim", ["server", "model"])
def test_a_dead_server_is_replaced_on_the_same_port(
    plan: LaunchPlan, victim: str, caplog: pytest.LogCaptureFixture
) -> None:
    with Supervisor(plan) as supervisor:
        supervisor.wait_until_ready()
        (server,) = server_processes(plan)
        models = server.children()
        (server if victim == "server" else models[0]).kill()
        wait_until(lambda: not server.is_running(), "the end of the first server")
        wait_until(lambda: is_ready(plan), "readiness of another one")
        (second,) = server_processes(plan)
        assert second.pid != server.pid
        assert len(second.children()) == MODEL_PROCESSES
        assert not any(model.is_running() for model in models)
    expected = "it was killed by signal 9" if victim == "server" else f"its process {models[0].pid} ended"
    # The next one may need a second attempt: what the killed one left in shared memory is in its way for a moment.
    first = next(each for each in caplog.records if each.levelno == logging.ERROR)
    assert f"Triton has died: {expected}" in first.getMessage()


SUPERVISE = """
import sys
from pathlib import Path
from deploy.server.installation import find_installation
from deploy.server.launcher import LaunchPlan
from deploy.server.supervisor import Supervisor
from tests.waiting import wait_until
plan = LaunchPlan.temporary(find_installation(), Path(sys.argv[1]))
with Supervisor(plan) as supervisor:
    print(plan.grpc_port, plan.folder, flush=True)
    if sys.argv[2] == "ready":
        supervisor.wait_until_ready()
        print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_server_ends_with_its_parent_even_where_that_is_killed(
    installation: Installation, nano_repository: Path
) -> None:
    parent, _, folder = start_parent(nano_repository, "ready")
    try:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        family = psutil.Process(parent.pid).children(recursive=True)
        assert [each.name() for each in family].count("triton_python_backend_stub") == MODEL_PROCESSES
        parent.kill()
        assert psutil.wait_procs(family, timeout=10)[1] == []
        assert not list(SHARED_MEMORY.glob(f"trident-{parent.pid}-*"))
    finally:
        parent.kill()
        parent.communicate()
        shutil.rmtree(folder)


@pytest.mark.parametrize("models", range(1, MODEL_PROCESSES + 1))
def test_model_processes_that_are_starting_end_with_the_parent_too(
    installation: Installation, nano_repository: Path, models: int
) -> None:
    parent, port, folder = start_parent(nano_repository, "starting")
    try:
        wait_until(lambda: any(len(each.children()) >= models for each in servers_on(port)), "the start of models")
        family = psutil.Process(parent.pid).children(recursive=True)
        parent.kill()
        assert psutil.wait_procs(family, timeout=10)[1] == []
        assert not [each for each in psutil.process_iter() if folder in " ".join(cmdline(each))]
        assert not list(SHARED_MEMORY.glob(f"trident-{parent.pid}-*"))
    finally:
        parent.kill()
        parent.communicate()
        shutil.rmtree(folder)


def start_parent(repository: Path, moment: str) -> tuple[subprocess.Popen[str], int, str]:
    """A process that supervises a server, the server's port and the plan's folder."""
    command = [sys.executable, "-c", SUPERVISE, str(repository), moment]
    parent = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    port, folder = parent.stdout.readline().split()
    return parent, int(port), folder


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


@pytest.fixture
def broken(plan: LaunchPlan, nano_repository: Path, tmp_path: Path) -> LaunchPlan:
    """A plan whose repository lacks a graph."""
    repository = shutil.copytree(nano_repository, tmp_path / "broken")
    (repository / "qa" / "1" / "graphs" / "qa.onnx").unlink()
    return replace(plan, repository=repository)


def test_a_model_that_does_not_load_fails_in_words_with_the_log_s_end(broken: LaunchPlan) -> None:
    with pytest.raises(TritonFailed) as caught, Supervisor(broken) as supervisor:
        supervisor.wait_until_ready()
    first, *end = str(caught.value).splitlines()
    assert first == f"Triton did not start: it ended with status 1. The end of its log, {broken.log}:"
    assert any("qa/1/graphs/qa.onnx cannot be read" in line for line in end)
    assert len(end) <= 25
    assert "qa.onnx cannot be read" in broken.log.read_text()


def test_a_server_that_is_never_ready_is_given_up_and_ended(plan: LaunchPlan, tmp_path: Path) -> None:
    repository = shutil.copytree(plan.repository, tmp_path / "stuck")
    model = repository / "router" / "1" / "model.py"
    model.write_text("import threading\nthreading.Event().wait()\n")
    stuck = replace(plan, repository=repository)
    with (
        pytest.raises(TritonFailed, match=r"it was not ready after 3 s\. The end of its log"),
        Supervisor(stuck, start_timeout_s=3) as supervisor,
    ):
        supervisor.wait_until_ready()


def test_a_taken_port_is_named_in_the_failure(plan: LaunchPlan) -> None:
    with (
        socket.create_server(("127.0.0.1", plan.grpc_port)),
        pytest.raises(TritonFailed, match=f"(?s)did not start.*127.0.0.1:{plan.grpc_port}"),
        Supervisor(plan) as supervisor,
    ):
        supervisor.wait_until_ready()


def test_a_start_can_be_broken_off(plan: LaunchPlan) -> None:
    before = set(threading.enumerate())
    with Supervisor(plan):
        wait_until(lambda: bool(server_processes(plan)), "the start")
    assert set(threading.enumerate()) <= before
