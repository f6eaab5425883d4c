"""Clients that leave, services that drain, Tritons that die."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.conftest import ROOT, SHIPPED_BUNDLE, Service

LONG = {"prompt": "A long story begins here:", "max_new_tokens": 400, "min_new_tokens": 400, "stream": True}


def start_stream(client: httpx.Client, lines: list[str], started: threading.Event) -> None:
    with client.stream("POST", "/v1/generate", json={**LONG, "temperature": 1, "seed": 3}) as response:
        for line in response.iter_lines():
            lines.append(line)
            started.set()


def test_a_client_that_disconnects_frees_its_slot(service: Service) -> None:
    with (
        httpx.Client(base_url=service.url, timeout=60) as client,
        client.stream("POST", "/v1/generate", json={**LONG, "temperature": 0}) as response,
    ):
        next(response.iter_lines())
        assert service.gauge("trident_num_requests_running") >= 1
    service.wait_until(service.is_idle, "an idle engine after the disconnect", timeout_s=5)


def test_sigterm_lets_a_stream_finish(own_service: Service) -> None:
    lines: list[str] = []
    started = threading.Event()
    with httpx.Client(base_url=own_service.url, timeout=60) as client:
        reader = threading.Thread(target=start_stream, args=(client, lines, started))
        reader.start()
        assert started.wait(30)
        own_service.process.send_signal(signal.SIGTERM)
        reader.join(60)
    assert own_service.process.wait(60) == 0
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    assert json.loads(data[-2])["finish_reason"] in {"length", "stop"}


def test_a_killed_triton_comes_back(own_service: Service) -> None:
    body = {"prompt": "Hello", "max_new_tokens": 4, "temperature": 0}
    before = httpx.post(f"{own_service.url}/v1/generate", json=body, timeout=60).json()["text"]
    killed = own_service.triton()
    killed.kill()
    own_service.wait_until(lambda: not own_service.is_ready(), "not ready after the kill")
    own_service.wait_until(own_service.is_ready, "readiness with a new Triton", timeout_s=90)
    assert own_service.triton().pid != killed.pid
    assert httpx.post(f"{own_service.url}/v1/generate", json=body, timeout=60).json()["text"] == before


def test_triton_dies_with_its_parent(own_service: Service) -> None:
    triton = own_service.triton()
    own_service.process.kill()
    own_service.process.wait(10)
    triton.wait(timeout=20)
    assert not triton.is_running()


def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deploy", "serve", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)


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
