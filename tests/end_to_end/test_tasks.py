"""Every endpoint through the real Triton."""

from __future__ import annotations

import json

import httpx
import pytest

CONTEXT = (
    "The lighthouse on the northern cape was built in 1871 by Elias Berg, a mason from the village below. "
    "For sixty years its lamp burned whale oil. In 1931 an electric lamp replaced the oil, and the last keeper, "
    "Anna Holm, opened a small museum in the rooms where she had lived. 灯塔仍然屹立。"
)


def post(client: httpx.Client, path: str, **body) -> dict:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def events(client: httpx.Client, path: str, **body) -> list[dict]:
    """The JSON events of a stream, checked to end with [DONE]."""
    with client.stream("POST", path, json={**body, "stream": True}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    return [json.loads(item) for item in data[:-1]]


def test_ready_names_the_triton_version(client: httpx.Client) -> None:
    answer = client.get("/health/ready")
    assert answer.status_code == 200
    assert "2.51.0" in answer.text
    assert client.get("/health/live").status_code == 200


def test_generate_answers_with_usage_and_timings(client: httpx.Client) -> None:
    answer = post(client, "/v1/generate", prompt="The city of Paris is", max_new_tokens=16, temperature=0)
    assert answer["text"].strip()
    assert answer["finish_reason"] in {"stop", "length"}
    usage = answer["usage"]
    assert 1 <= usage["completion_tokens"] <= 16
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert set(answer["timings"]) == {"queue_ms", "prefill_ms", "decode_ms", "ttft_ms", "total_ms"}
    assert all(value >= 0 for value in answer["timings"].values())


@pytest.mark.parametrize("path", ["/v1/generate", "/v1/summarize"])
def test_a_stream_says_what_the_plain_answer_says(client: httpx.Client, path: str) -> None:
    body = {"prompt": CONTEXT, "temperature": 0} if path == "/v1/generate" else {"text": CONTEXT, "num_beams": 1}
    plain = post(client, path, **body, max_new_tokens=24)
    pieces = events(client, path, **body, max_new_tokens=24)
    assert "".join(piece["delta"] for piece in pieces) == plain["text" if path == "/v1/generate" else "summary"]
    assert pieces[-1]["finish_reason"] == plain["finish_reason"]
    assert len({piece["id"] for piece in pieces}) == 1


def test_equal_seeds_give_equal_texts(client: httpx.Client) -> None:
    body = {"prompt": "Once upon a time", "max_new_tokens": 24, "temperature": 1.0, "top_p": 0.95}
    first = post(client, "/v1/generate", **body, seed=11)["text"]
    assert post(client, "/v1/generate", **body, seed=11)["text"] == first
    assert any(post(client, "/v1/generate", **body, seed=seed)["text"] != first for seed in range(12, 16))


def test_a_stop_string_ends_the_text_before_it(client: httpx.Client) -> None:
    body = {"prompt": CONTEXT, "max_new_tokens": 32, "temperature": 0}
    free = post(client, "/v1/generate", **body)["text"]
    stop = free[len(free) // 2 : len(free) // 2 + 3]
    stopped = post(client, "/v1/generate", **body, stop=[stop])
    assert stopped["text"] == free[: free.index(stop)]
    assert stopped["finish_reason"] == "stop"


def test_qa_answers_with_spans_of_the_context(client: httpx.Client) -> None:
    answer = post(client, "/v1/qa", question="Who built the lighthouse?", context=CONTEXT, top_k=3)
    assert len(answer["answers"]) == 3
    for span in answer["answers"]:
        assert CONTEXT[span["start"] : span["end"]] == span["text"]
    scores = [span["score"] for span in answer["answers"]]
    assert scores == sorted(scores, reverse=True)
    assert 0 <= answer["no_answer_score"] <= 1
    assert sum(scores) + answer["no_answer_score"] <= 1 + 1e-6


def test_qa_reads_contexts_longer_than_a_window(client: httpx.Client) -> None:
    padding = "Nothing of note happened in the village that year, and the harvest was neither good nor bad. " * 60
    context = padding + CONTEXT + " " + padding
    answer = post(client, "/v1/qa", question="Who built the lighthouse?", context=context, top_k=5)
    start = context.index(CONTEXT)
    assert any(start <= span["start"] < start + len(CONTEXT) for span in answer["answers"])


def test_summaries_use_beams(client: httpx.Client) -> None:
    answer = post(client, "/v1/summarize", text=CONTEXT, num_beams=4, max_new_tokens=32, min_new_tokens=4)
    assert answer["summary"].strip()
    assert answer["usage"]["completion_tokens"] <= 32


@pytest.mark.parametrize("task", ["generation", "qa", "summary"])
def test_an_explicit_task_wins_over_the_router(client: httpx.Client, task: str) -> None:
    answer = post(client, "/v1/infer", input="Who built the lighthouse?", context=CONTEXT, task=task)
    assert answer["task"] == task
    expected = {"generation": "text", "qa": "answers", "summary": "summary"}[task]
    assert expected in answer["result"]


def test_auto_routes_by_the_largest_probability(client: httpx.Client) -> None:
    answer = post(client, "/v1/infer", input="Who built the lighthouse?", context=CONTEXT)
    assert set(answer["route"]) == {"generation", "qa", "summary"}
    assert sum(answer["route"].values()) == pytest.approx(1, abs=1e-4)
    assert answer["task"] == max(answer["route"], key=answer["route"].get)


def test_models_and_metrics_are_published(client: httpx.Client) -> None:
    models = client.get("/v1/models").json()
    assert models["object"] == "list"
    assert models["data"][0]["id"]
    text = client.get("/metrics").text
    for name in (
        "trident_requests_total",
        "trident_time_to_first_token_seconds_bucket",
        "trident_inter_token_latency_seconds_bucket",
        "trident_e2e_request_latency_seconds_bucket",
        "trident_request_queue_time_seconds_bucket",
        "trident_request_prefill_time_seconds_bucket",
        "trident_request_decode_time_seconds_bucket",
        "trident_prompt_tokens_total",
        "trident_generation_tokens_total",
        "trident_num_requests_running",
        "trident_num_requests_waiting",
        "trident_batch_size",
        "trident_batch_padding_ratio",
        "trident_kv_cache_usage_ratio",
        "trident_requests_rejected_total",
        "trident_process_resident_memory_bytes",
    ):
        assert name in text, name
