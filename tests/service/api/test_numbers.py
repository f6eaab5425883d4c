"""The metrics: names, and that they count what happened."""

from __future__ import annotations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.service.api.running_gateway import RunningGateway, stream_events
from tests.service.api.test_writing import TEXT, post

HISTOGRAMS = (
    *("time_to_first_token_seconds", "inter_token_latency_seconds", "e2e_request_latency_seconds"),
    *("request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"),
    *("batch_size", "batch_padding_ratio", "tier_request_latency_seconds"),
)
COUNTERS = (
    *("requests", "requests_rejected", "prompt_tokens", "generation_tokens"),
    *("tier_requests", "tier_requests_rejected"),
)
GAUGES = (
    *("num_requests_running", "num_requests_waiting", "kv_cache_usage_ratio", "latency_model_error_ratio"),
    *("process_resident_memory_bytes", "gpu_memory_used_bytes"),
    *("requests_in_flight", "body_bytes_in_flight", "text_bytes_in_flight"),
    *("forecast_arrival_rate", "forecast_error_ratio", "forecast_burst", "answer_length_within_ratio"),
)


def test_every_metric_has_its_name_and_kind(client: httpx.Client) -> None:
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    kinds = dict.fromkeys(HISTOGRAMS, "histogram") | dict.fromkeys(COUNTERS, "counter") | dict.fromkeys(GAUGES, "gauge")
    assert {f"trident_{name}": kind for name, kind in kinds.items()} == {
        name: family.type for name, family in families.items()
    }
    for name in HISTOGRAMS[:6]:
        bounds = {float(sample.labels["le"]) for sample in families[f"trident_{name}"].samples if "le" in sample.labels}
        assert min(bounds) == 0.001
        assert 60 in bounds


def test_prometheus_may_ask_for_open_metrics(client: httpx.Client) -> None:
    response = client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert response.headers["content-type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_and_times_are_counted(gateway: RunningGateway, client: httpx.Client, stream: bool) -> None:
    names = [f"trident_{name}_count" for name in HISTOGRAMS] + [f"trident_{name}_total" for name in COUNTERS]
    before = {name: gateway.metric(name) for name in names}
    body = {"prompt": TEXT, "max_new_tokens": 9, "min_new_tokens": 9}
    if stream:
        usage = stream_events(client, "/v1/generate", body)[-1]["usage"]
    else:
        usage = post(client, "/v1/generate", **body)["usage"]
    gateway.wait_until(
        lambda: gateway.metric("trident_requests_total") > before["trident_requests_total"], "the count of the request"
    )
    grown = {name: gateway.metric(name) - before[name] for name in names}
    assert grown.pop("trident_inter_token_latency_seconds_count") == (8 if stream else 1)
    assert grown.pop("trident_prompt_tokens_total") == usage["prompt_tokens"]
    assert grown.pop("trident_generation_tokens_total") == usage["completion_tokens"] == 9
    assert grown.pop("trident_requests_rejected_total") == 0
    assert grown.pop("trident_tier_requests_rejected_total") == 0
    assert set(grown.values()) == {1}


@pytest.mark.parametrize(
    ("path", "body", "task", "code"),
    [
        ("/v1/generate", {"prompt": "a", "max_new_tokens": 1}, "generation", "200"),
        ("/v1/generate", {}, "generation", "422"),
        ("/v1/qa", {"question": "who", "context": "the mill"}, "qa", "200"),
        ("/v1/summarize", {"text": "!" * 3000}, "summary", "400"),
        ("/v1/infer", {"input": "a", "context": "b", "task": "qa"}, "qa", "200"),
        ("/v1/infer", {}, "infer", "422"),
        ("/v1/completions", {"model": "gpt-17", "prompt": "a"}, "generation", "404"),
        ("/v1/chat/completions", {"model": "trident"}, "generation", "400"),
    ],
)
def test_requests_are_counted_by_task_and_code(
    gateway: RunningGateway, client: httpx.Client, path: str, body: dict, task: str, code: str
) -> None:
    def count() -> float:
        return gateway.metric("trident_requests_total", task=task, code=code)

    before = count()
    assert client.post(path, json=body).status_code == int(code)
    gateway.wait_until(lambda: count() == before + 1, "the count of the request")


def test_an_idle_gateway_has_nothing_running_waiting_or_in_the_cache(
    gateway: RunningGateway, client: httpx.Client
) -> None:
    post(client, "/v1/generate", prompt="a", max_new_tokens=4)
    gateway.wait_until(gateway.is_idle, "an idle gateway", timeout_s=5)
