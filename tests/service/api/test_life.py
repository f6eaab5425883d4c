"""A gateway's beginning and end: sockets, readiness, draining, models that are not there."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from service.server import bind
from tests.end_to_end.conftest import ROOT, free_port
from tests.service.api.running_gateway import ENDLESS, RunningGateway, check_error, running_gateway

MEGABYTE = 1 << 20


class Reader(threading.Thread):
    """Sends a request and keeps what comes."""

    def __init__(self, gateway: RunningGateway, body: dict) -> None:
        super().__init__()
        self._url, self._body = f"{gateway.url}/v1/generate", body
        self.started = threading.Event()
        self.status = 0
        self.headers = httpx.Headers()
        self.lines: list[str] = []

    def run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=60) as response:
            self.status, self.headers = response.status_code, response.headers
            for line in response.iter_lines():
                self.lines.append(line)
                self.started.set()

    def data(self) -> list[str]:
        """The data of a stream's events."""
        return [line.removeprefix("data: ") for line in self.lines if line.startswith("data: ")]


def test_a_drain_lets_requests_finish_and_refuses_new_ones(nano_bundle: Path, tmp_path: Path) -> None:
    with running_gateway(nano_bundle, tmp_path) as gateway:
        streamed, whole = Reader(gateway, {**ENDLESS, "stream": True}), Reader(gateway, ENDLESS)
        streamed.start()
        whole.start()
        assert streamed.started.wait(30)
        gateway.wait_until(lambda: gateway.metric("trident_num_requests_running") == 2, "two running requests")
        gateway.process.send_signal(signal.SIGTERM)
        gateway.wait_until(lambda: gateway.ready_status() == 503, "readiness to end")
        check_error(httpx.post(f"{gateway.url}/v1/generate", json={"prompt": "a"}), 503, "unavailable")
        check_error(httpx.post(f"{gateway.url}/v1/nope", json={}), 404, "not_found")
        not_ready = check_error(httpx.get(f"{gateway.url}/health/ready"), 503, "unavailable")
        assert "draining" in not_ready["message"]
        assert httpx.get(f"{gateway.url}/health/live").status_code == 200
        streamed.join(60)
        whole.join(60)
        assert gateway.process.wait(30) == 0
    *_, last, done = streamed.data()
    assert done == "[DONE]"
    assert json.loads(last)["finish_reason"] == "length"
    assert whole.status == 200
    assert json.loads(whole.lines[0])["usage"]["completion_tokens"] == 512


def test_a_drain_ends_when_its_time_is_over(nano_bundle: Path, tmp_path: Path) -> None:
    # One slot, so that the second request is still waiting when the time is over.
    limits = {"server__grace_s": 0.05, "batching__running_slots": 1}
    with running_gateway(nano_bundle, tmp_path, **limits) as gateway:
        streamed, waiting = Reader(gateway, {**ENDLESS, "stream": True}), Reader(gateway, ENDLESS)
        streamed.start()
        assert streamed.started.wait(30)
        waiting.start()
        gateway.wait_until(lambda: gateway.metric("trident_num_requests_waiting") == 1, "a waiting request")
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(30) == 0
        streamed.join(60)
        waiting.join(60)
    assert json.loads(streamed.data()[-1])["error"]["code"] == "unavailable"
    assert waiting.status == 503
    assert json.loads(waiting.lines[0])["error"]["code"] == "unavailable"


def test_a_second_sigint_does_not_wait(nano_bundle: Path, tmp_path: Path) -> None:
    with running_gateway(nano_bundle, tmp_path) as gateway:
        streamed = Reader(gateway, {**ENDLESS, "stream": True})
        streamed.start()
        assert streamed.started.wait(30)
        gateway.process.send_signal(signal.SIGINT)
        gateway.wait_until(lambda: gateway.ready_status() == 503, "readiness to end")
        gateway.process.send_signal(signal.SIGINT)
        assert gateway.process.wait(30) == 0
        streamed.join(60)
    assert json.loads(streamed.data()[-1])["error"]["code"] == "unavailable"


@pytest.fixture(scope="module")
def lonely_gateway(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory):
    """A gateway in front of a Triton that does not exist."""
    settings = {"runtime": "triton", "triton__url": f"127.0.0.1:{free_port()}"}
    with running_gateway(nano_bundle, tmp_path_factory.mktemp("lonely"), ready=False, **settings) as gateway:
        yield gateway
        assert gateway.stop() == 0


def test_without_models_the_gateway_lives_and_says_why_it_is_not_ready(lonely_gateway: RunningGateway) -> None:
    assert httpx.get(f"{lonely_gateway.url}/health/live").status_code == 200

    def says_why() -> bool:
        return "UNAVAILABLE" in httpx.get(f"{lonely_gateway.url}/health/ready").text

    lonely_gateway.wait_until(says_why, "the reason")
    check_error(httpx.get(f"{lonely_gateway.url}/health/ready"), 503, "unavailable")


def test_a_probe_that_hears_not_ready_is_no_rejected_request(lonely_gateway: RunningGateway) -> None:
    before = lonely_gateway.metric("trident_requests_rejected_total")
    for _ in range(3):
        assert httpx.get(f"{lonely_gateway.url}/health/ready").status_code == 503
    assert lonely_gateway.metric("trident_requests_rejected_total") == before
    check_error(httpx.post(f"{lonely_gateway.url}/v1/generate", json={"prompt": "a"}, timeout=30), 503, "unavailable")
    lonely_gateway.wait_until(
        lambda: lonely_gateway.metric("trident_requests_rejected_total", reason="unavailable") == before + 1,
        "the count of the request",
    )


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/generate", {"prompt": "a"}),
        ("/v1/generate", {"prompt": "a", "stream": True}),
        ("/v1/qa", {"question": "who", "context": "the mill " * 500}),
        ("/v1/infer", {"input": "a"}),
        ("/v1/chat/completions", {"model": "trident", "messages": [{"role": "user", "content": "a"}]}),
    ],
)
def test_without_models_requests_are_503(lonely_gateway: RunningGateway, path: str, body: dict) -> None:
    check_error(httpx.post(f"{lonely_gateway.url}{path}", json=body, timeout=30), 503, "unavailable")
    lonely_gateway.wait_until(lonely_gateway.is_idle, "an idle gateway", timeout_s=5)


def test_an_idle_gateway_before_triton_takes_less_than_200_megabytes(lonely_gateway: RunningGateway) -> None:
    resident = lonely_gateway.metric("trident_process_resident_memory_bytes")
    assert resident == pytest.approx(psutil.Process(lonely_gateway.process.pid).memory_info().rss, rel=0.05)
    assert resident < 200 * MEGABYTE


def test_a_gateway_before_triton_loads_neither_onnx_runtime_nor_pytorch(nano_bundle: Path) -> None:
    program = (
        "import sys; from service.app import build_app; from service.settings import Settings; build_app(Settings()); "
        "print([name for name in ('onnxruntime', 'torch', 'transformers') if name in sys.modules])"
    )
    environment = {**os.environ, "TRIDENT_BUNDLE": str(nano_bundle), "TRIDENT_RUNTIME": "triton"}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT, env=environment
    )
    assert result.stdout.strip() == "[]"


def test_a_port_in_use_says_how_to_mend_it() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} on 127\.0\.0\.1 is in use: stop .* or choose another"):
            bind("127.0.0.1", port)


def test_an_address_of_another_machine_says_how_to_mend_it() -> None:
    with pytest.raises(ValueError, match=r"port 0 on 192\.0\.2\.1 .*: choose another \(--host\)"):
        bind("192.0.2.1", 0)


def test_a_host_that_is_none_says_how_to_mend_it() -> None:
    with pytest.raises(ValueError, match=r"'no such host' is no address"):
        bind("no such host", 0)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_ipv6_is_listened_on() -> None:
    with bind("::1", 0) as listener:
        assert listener.family is socket.AF_INET6


@pytest.mark.parametrize(("name", "runtime"), [("tokenizer.json", "triton"), ("graphs/encoder.onnx", "local")])
def test_a_damaged_bundle_is_one_line_with_the_file_s_name(
    nano_bundle: Path, tmp_path: Path, name: str, runtime: str
) -> None:
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for path in nano_bundle.rglob("*"):
        target = bundle / path.relative_to(nano_bundle)
        if path.is_dir():
            target.mkdir()
        else:
            target.write_bytes(path.read_bytes())
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(content)
    environment = {
        **os.environ,
        "TRIDENT_BUNDLE": str(bundle),
        "TRIDENT_RUNTIME": runtime,
        "TRIDENT_SERVER__PORT": "0",
    }
    result = subprocess.run(
        [sys.executable, "-m", "service"], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
    )
    assert result.returncode == 1
    assert Path(name).name in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
