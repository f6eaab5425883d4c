"""Generation and summaries over HTTP: what comes back, whole or streamed, and how sampling is steered."""

from __future__ import annotations

import httpx
import pytest

from tests.service.api.running_gateway import check_error, stream_events

TEXT = "Anna: Did you return the books? Ben: Not yet, the library was closed. 天文学家用光年。"


def post(client: httpx.Client, path: str, **body: object) -> dict:
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def test_an_answer_has_everything_that_is_promised(client: httpx.Client) -> None:
    answer = post(client, "/v1/generate", prompt=TEXT, max_new_tokens=6, min_new_tokens=6)
    assert answer.keys() == {"id", "model", "text", "finish_reason", "usage", "timings"}
    assert answer["model"] == "trident-nano"
    assert answer["finish_reason"] == "length"
    assert answer["usage"]["completion_tokens"] == 6
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 6
    timings = answer["timings"]
    assert timings.keys() == {"queue_ms", "prefill_ms", "decode_ms", "ttft_ms", "total_ms"}
    assert 0 < timings["queue_ms"] + timings["prefill_ms"] + timings["decode_ms"] <= timings["total_ms"]
    assert timings["ttft_ms"] <= timings["total_ms"]


def test_128_tokens_are_the_default(client: httpx.Client) -> None:
    answer = post(client, "/v1/generate", prompt=TEXT, min_new_tokens=128)
    assert answer["usage"]["completion_tokens"] == 128


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/generate", {"prompt": TEXT, "temperature": 0}),
        ("/v1/generate", {"prompt": TEXT, "temperature": 1.5, "seed": 3, "top_p": 0.9, "top_k": 500}),
        ("/v1/summarize", {"text": TEXT, "num_beams": 1}),
    ],
    ids=["greedy", "sampled", "summary"],
)
def test_a_stream_says_what_the_whole_answer_says(client: httpx.Client, path: str, body: dict) -> None:
    whole = post(client, path, **body, max_new_tokens=40)
    events = stream_events(client, path, {**body, "max_new_tokens": 40})
    *early, last = events
    assert len(early) > 10
    assert all(event.keys() == {"id", "delta", "finish_reason"} and event["finish_reason"] is None for event in early)
    assert last.keys() == {"id", "delta", "finish_reason", "usage", "timings"}
    assert len({event["id"] for event in events}) == 1
    assert "".join(event["delta"] for event in events) == whole["text" if path == "/v1/generate" else "summary"]
    assert (last["finish_reason"], last["usage"]) == (whole["finish_reason"], whole["usage"])
    assert last["timings"]["ttft_ms"] < last["timings"]["total_ms"]


def test_equal_seeds_give_equal_texts_and_no_seed_gives_any(client: httpx.Client) -> None:
    body = {"prompt": TEXT, "max_new_tokens": 16, "temperature": 1.2}
    seeded = {post(client, "/v1/generate", **body, seed=11)["text"] for _ in range(2)}
    assert len(seeded) == 1
    assert len({post(client, "/v1/generate", **body)["text"] for _ in range(3)}) > 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("several", [False, True])
def test_the_text_ends_before_a_stop_string(client: httpx.Client, stream: bool, several: bool) -> None:
    body = {"prompt": TEXT, "max_new_tokens": 32, "min_new_tokens": 32, "temperature": 0}
    free = post(client, "/v1/generate", **body)["text"]
    stop = free[len(free) // 2 : len(free) // 2 + 5]
    body["stop"] = ["never in there", stop] if several else stop
    if stream:
        events = stream_events(client, "/v1/generate", body)
        text, ending = "".join(event["delta"] for event in events), events[-1]
    else:
        ending = post(client, "/v1/generate", **body)
        text = ending["text"]
    assert text == free[: free.index(stop)]
    assert ending["finish_reason"] == "stop"
    assert ending["usage"]["completion_tokens"] < 32
    assert all(value >= 0 for value in ending["timings"].values())


def test_summaries_take_four_beams_unless_they_stream(client: httpx.Client) -> None:
    body = {"text": TEXT, "max_new_tokens": 24}
    assert (
        post(client, "/v1/summarize", **body)["summary"]
        == post(client, "/v1/summarize", **body, num_beams=4)["summary"]
    )
    streamed = "".join(event["delta"] for event in stream_events(client, "/v1/summarize", body))
    assert streamed == post(client, "/v1/summarize", **body, num_beams=1)["summary"]
    response = client.post("/v1/summarize", json={**body, "num_beams": 2, "stream": True})
    check_error(response, 422, "invalid_value", "num_beams")


def test_a_summary_has_its_shape_and_keeps_its_lengths(client: httpx.Client) -> None:
    answer = post(client, "/v1/summarize", text=TEXT, min_new_tokens=9, max_new_tokens=9)
    assert answer.keys() == {"summary", "finish_reason", "usage", "timings"}
    assert answer["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/generate", {"prompt": "a", "max_new_tokens": 513}, "max_new_tokens"),
        ("/v1/generate", {"prompt": "a", "max_new_tokens": 4, "min_new_tokens": 5}, "min_new_tokens"),
        ("/v1/generate", {"prompt": "a", "top_k": 32_001}, "top_k"),
        ("/v1/summarize", {"text": "a", "max_new_tokens": 513}, "max_new_tokens"),
        ("/v1/summarize", {"text": "a", "num_beams": 9}, "num_beams"),
    ],
)
def test_what_is_above_the_bundle_s_limits_is_named(client: httpx.Client, path: str, body: dict, param: str) -> None:
    check_error(client.post(path, json=body), 422, "invalid_value", param)


@pytest.mark.parametrize(("path", "field"), [("/v1/generate", "prompt"), ("/v1/summarize", "text")])
def test_a_source_fits_to_the_last_token(client: httpx.Client, path: str, field: str) -> None:
    short = {"max_new_tokens": 1}
    empty = post(client, path, **{field: "!"}, **short)["usage"]["prompt_tokens"]
    assert empty == 2
    # The bundle's tokenizer has no merge of exclamation marks: each is a token.
    assert post(client, path, **{field: "!" * 2047}, **short)["usage"]["prompt_tokens"] == 2048
    error = check_error(client.post(path, json={field: "!" * 2048, **short}), 400, "context_length_exceeded", field)
    assert "2049" in error["message"]
    assert "2048" in error["message"]
