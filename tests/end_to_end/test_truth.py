"""What gateway and Triton know of each other is what is so: which bundle is served, and how long things took."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.end_to_end.conftest import ROOT, SHIPPED_BUNDLE, Service, free_port
from tests.end_to_end.test_tasks import CONTEXT


def grpc_port(service: Service) -> str:
    """Where the service's Triton listens."""
    (port,) = (each.partition("=")[2] for each in service.triton().cmdline() if each.startswith("--grpc-port="))
    return port


def renamed_bundle(folder: Path) -> Path:
    """The shipped bundle under another name: another manifest."""
    shutil.copytree(SHIPPED_BUNDLE, folder, copy_function=os.link)
    manifest = json.loads((SHIPPED_BUNDLE / "manifest.json").read_text(encoding="utf-8"))
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "name": "somebody-elses"}), encoding="utf-8")
    return folder


@contextmanager
def gateway_before(triton_port: str, bundle: Path, log: Path) -> Iterator[str]:
    """The address of a gateway of its own in front of a Triton that runs already."""
    port = free_port()
    environment = {
        **os.environ,
        "TRIDENT_BUNDLE": str(bundle),
        "TRIDENT_TRITON__URL": f"127.0.0.1:{triton_port}",
        "TRIDENT_SERVER__PORT": str(port),
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "service"], stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
        )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        assert process.wait(30) == 0


def test_a_gateway_before_a_triton_with_another_bundle_serves_nothing(service: Service, tmp_path: Path) -> None:
    bundle = renamed_bundle(tmp_path / "bundle")
    with gateway_before(grpc_port(service), bundle, tmp_path / "gateway.log") as url:

        def reason() -> str:
            try:
                return httpx.get(f"{url}/health/ready", timeout=10).json()["error"]["message"]
            except httpx.TransportError:
                return ""

        service.wait_until(lambda: "somebody-elses" in reason(), "the reason why it is not ready")
        shipped = json.loads((SHIPPED_BUNDLE / "manifest.json").read_text(encoding="utf-8"))["name"]
        assert repr(shipped) in reason()
        for path, body in (
            ("/v1/generate", {"prompt": "a"}),
            ("/v1/qa", {"question": "Who built the lighthouse?", "context": CONTEXT}),
        ):
            response = httpx.post(f"{url}{path}", json=body, timeout=30)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")
            assert "somebody-elses" in response.json()["error"]["message"]


def test_what_a_running_service_starts_from_again_is_not_replaced(service: Service, tmp_path: Path) -> None:
    bundle, repository = renamed_bundle(tmp_path / "bundle"), service.log.parent / "model_repository"
    command = [sys.executable, "-m", "deploy", "repository", "build", "--backend", "python"]
    built = subprocess.run(
        [*command, "--bundle", bundle, "--output", repository], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert (built.returncode, built.stdout) == (1, "")
    (line,) = built.stderr.splitlines()
    assert line.startswith(f"error: {repository} is in use by process {service.process.pid} ")
    assert "somebody-elses" not in (repository / "qa" / "config.pbtxt").read_text(encoding="utf-8")


def test_the_latency_models_learn_from_what_triton_reports(service: Service, client: httpx.Client) -> None:
    # The first batch of windows after a start tells only where the model's counters stand.
    for _ in range(3):
        question = {"question": "Who built the lighthouse?", "context": CONTEXT}
        assert client.post("/v1/qa", json=question).status_code == 200
        assert client.post("/v1/generate", json={"prompt": "a", "max_new_tokens": 8}).status_code == 200
    for model in ("generator", "generator_step", "qa"):
        service.wait_until(
            lambda model=model: service.gauge("trident_latency_model_error_ratio", model=model) > 0,
            f"an observation of {model}",
        )
