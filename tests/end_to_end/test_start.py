"""How a service starts, with every kind of Triton and with none, and how it refuses to."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from tests.end_to_end.conftest import (
    ROOT,
    SHIPPED_BUNDLE,
    TRIDENT,
    TRIDENT_WITHOUT_AN_ENVIRONMENT,
    Service,
    start_service,
    stop_service,
)


def test_two_services_can_share_one_triton(service: Service, tmp_path: Path) -> None:
    flag = "--grpc-port="
    port = next(each.removeprefix(flag) for each in service.triton().cmdline() if each.startswith(flag))
    second = start_service(tmp_path, "--triton-url", f"127.0.0.1:{port}")
    try:
        assert second.family() == []
        body = {"prompt": "The river", "max_new_tokens": 12, "temperature": 0}
        texts = [
            httpx.post(f"{each.url}/v1/generate", json=body, timeout=60).json()["text"] for each in (service, second)
        ]
        assert texts[0] == texts[1]
    finally:
        assert stop_service(second) == 0


def test_a_proxy_for_the_outer_world_does_not_stand_before_triton(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:1"
    service = start_service(
        tmp_path, "--repository", str(tmp_path / "repository"), http_proxy=nowhere, https_proxy=nowhere, no_proxy=""
    )
    assert stop_service(service) == 0


def test_without_triton_one_line_says_so_and_the_service_serves(tmp_path: Path) -> None:
    service = start_service(tmp_path, trident=TRIDENT_WITHOUT_AN_ENVIRONMENT, PATH="/nowhere")
    try:
        said = [line for line in service.log.read_text().splitlines() if line.startswith("Without Triton")]
        assert len(said) == 1
        assert "onnxruntime" in httpx.get(f"{service.url}/health/ready").text
        body = {"prompt": "Hello", "max_new_tokens": 2}
        assert httpx.post(f"{service.url}/v1/generate", json=body, timeout=60).status_code == 200
    finally:
        assert stop_service(service) == 0


def test_sigterm_while_triton_starts_ends_everything(tmp_path: Path) -> None:
    log = tmp_path / "service.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy", "serve", "--port", "0", "--repository", str(tmp_path / "repository")],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
        )
    service = Service(process=process, url="", log=log)
    service.wait_until(lambda: any(each.name() == "tritonserver" for each in service.family()), "the start of Triton")
    family = service.family()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0, service.log_tail()
    assert psutil.wait_procs(family, timeout=1)[1] == []
    assert "Traceback" not in log.read_text()
    assert not list(Path("/dev/shm").glob(f"trident-{process.pid}-*"))


def test_port_0_takes_a_free_one_and_prints_it(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "deploy", "serve", "--port", "0", "--runtime", "local"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "http://" in line)
        url = next(word.rstrip(",") for word in line.split() if word.startswith("http://"))
        assert httpx.get(f"{url}/health/live", timeout=30).status_code == 200
        assert httpx.get(f"{url}/docs", timeout=30).status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate()
    assert process.returncode == 0


FAKE_SERVERS = {
    "hangs": ("echo 'E0000 about to hang'; exec sleep 600", "it was not ready after 2 s"),
    "ends": ("echo 'E0000 no such model'; exit 3", "it ended with status 3"),
}


@pytest.mark.parametrize("kind", FAKE_SERVERS)
def test_a_triton_that_never_becomes_ready_is_one_clear_error_with_its_log(tmp_path: Path, kind: str) -> None:
    script, reason = FAKE_SERVERS[kind]
    binary = tmp_path / "triton" / "bin" / "tritonserver"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    (tmp_path / "triton" / "backends" / "python").mkdir(parents=True)
    result = serve(
        *("--port", "0", "--start-timeout", "2", "--repository", str(tmp_path / "repository")),
        trident=TRIDENT_WITHOUT_AN_ENVIRONMENT,
        PATH=f"{binary.parent}:/usr/bin:/bin",
        TMPDIR=str(tmp_path),
    )
    assert result.returncode == 1
    first, last = result.stderr.strip().splitlines()
    assert first.startswith(f"error: Triton did not start: {reason}. The end of its log, ")
    assert last == script.split("'")[1]
    log = Path(first.split(", ")[-1].rstrip(":"))
    assert log.is_file()


def serve(*arguments: str, trident: tuple[str, ...] = TRIDENT, **environment: str) -> subprocess.CompletedProcess[str]:
    """`trident serve`, where it is expected to end by itself."""
    command = [*trident, "serve", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False, env=env)


def test_a_port_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = serve("--port", str(port), "--repository", str(tmp_path / "repository"))
    assert result.returncode == 1
    assert str(port) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("damage", ["tamper", "truncate", "remove"])
def test_a_damaged_bundle_is_refused_by_the_file_s_name(tmp_path: Path, damage: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(SHIPPED_BUNDLE, bundle)
    victim = max(bundle.rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    if damage == "remove":
        victim.unlink()
    else:
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 0xFF
        victim.write_bytes(content if damage == "tamper" else content[: len(content) // 2])
    result = serve("--port", "0", "--bundle", str(bundle), "--repository", str(tmp_path / "repository"))
    assert result.returncode == 1
    assert victim.name in result.stderr
    assert "Traceback" not in result.stderr
