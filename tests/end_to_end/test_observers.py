"""Other people's tools against the real service: Prometheus scrapes it, AIPerf measures it."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.end_to_end.conftest import SHIPPED_BUNDLE, Service
from tests.ports import free_port

pytestmark = pytest.mark.slow


@pytest.mark.skipif(not shutil.which("prometheus"), reason="needs prometheus on PATH (Debian: apt install prometheus)")
def test_prometheus_scrapes_the_service(service: Service, tmp_path: Path) -> None:
    target = service.url.removeprefix("http://")
    config = tmp_path / "prometheus.yml"
    config.write_text(
        f"scrape_configs:\n  - job_name: trident\n    scrape_interval: 1s\n"
        f"    static_configs:\n      - targets: ['{target}']\n",
        encoding="utf-8",
    )
    port = free_port()
    log = (tmp_path / "prometheus.log").open("wb")
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={tmp_path / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    try:
        httpx.post(f"{service.url}/v1/generate", json={"prompt": "Hello", "max_new_tokens": 2}, timeout=60)

        def value(query: str) -> float | None:
            try:
                answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params={"query": query}).json()
            except httpx.TransportError:
                return None
            results = answer["data"]["result"]
            return float(results[0]["value"][1]) if results else None

        service.wait_until(lambda: value('up{job="trident"}') == 1, "a successful scrape")
        service.wait_until(
            lambda: (value('sum(trident_requests_total{task="generation"})') or 0) >= 1, "the request in Prometheus"
        )
        assert value("histogram_quantile(0.5, sum by (le) (trident_time_to_first_token_seconds_bucket))") is not None
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@pytest.mark.skipif(not shutil.which("aiperf"), reason="needs aiperf on PATH (pip install '.[bench]')")
@pytest.mark.timeout(600)
def test_aiperf_measures_the_service_without_an_error(service: Service, tmp_path: Path) -> None:
    model = httpx.get(f"{service.url}/v1/models").json()["data"][0]["id"]
    command = [
        *("aiperf", "profile", "--model", model, "--url", service.url, "--endpoint-type", "completions"),
        *("--streaming", "--tokenizer", str(SHIPPED_BUNDLE), "--concurrency", "4", "--request-count", "16"),
        *("--synthetic-input-tokens-mean", "100", "--output-tokens-mean", "16"),
        *("--artifact-dir", str(tmp_path), "--ui-type", "none"),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=540, check=False, cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    exported = json.loads(next(tmp_path.rglob("profile_export_aiperf.json")).read_text(encoding="utf-8"))
    assert exported["request_count"]["avg"] == 16
    assert not exported.get("error_request_count", {}).get("avg")
