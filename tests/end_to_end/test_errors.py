"""Every error of the interface through the real Triton: the one envelope, and a service that lives on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.end_to_end.conftest import Service
from tests.end_to_end.test_tasks import CONTEXT

POSTS = ("/v1/generate", "/v1/qa", "/v1/summarize", "/v1/infer", "/v1/completions", "/v1/chat/completions")
LONG_TEXT = "The lighthouse keeper wrote in the log every evening. " * 1000


@pytest.fixture(autouse=True)
def leaves_the_service_idle(service: Service) -> Iterator[None]:
    """Whatever a test sent: the next request is answered, and nothing is left running."""
    yield
    answer = httpx.post(f"{service.url}/v1/generate", json={"prompt": "Hello", "max_new_tokens": 1}, timeout=60)
    assert answer.status_code == 200, answer.text
    service.wait_until(service.is_idle, "an idle engine after the test", timeout_s=5)


def check_error(response: httpx.Response, status: int, code: str, param: str | None = None) -> dict[str, Any]:
    """The envelope, complete; returns the error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    (name, error), *rest = response.json().items()
    assert (name, rest) == ("error", [])
    assert error.keys() == {"type", "code", "message", "param", "request_id"}
    assert error["code"] == code, error
    assert error["request_id"] == response.headers["X-Request-ID"]
    assert error["message"]
    if param is not None:
        assert error["param"] == param, error
    return error


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/generate", {"prompt": LONG_TEXT}, "prompt"),
        ("/v1/summarize", {"text": LONG_TEXT}, "text"),
        ("/v1/qa", {"question": LONG_TEXT, "context": CONTEXT}, "question"),
        ("/v1/infer", {"input": LONG_TEXT}, "input"),
        ("/v1/completions", {"model": "trident", "prompt": LONG_TEXT}, None),
    ],
)
def test_nothing_is_truncated_in_silence(client: httpx.Client, path: str, body: dict, param: str | None) -> None:
    if path == "/v1/completions":
        body["model"] = client.get("/v1/models").json()["data"][0]["id"]
    error = check_error(client.post(path, json=body), 400, "context_length_exceeded", param)
    numbers = [int(word) for word in error["message"].replace(",", "").split() if word.isdigit()]
    assert len(numbers) >= 2
    assert max(numbers) > min(numbers)


@pytest.mark.parametrize("path", POSTS)
def test_a_megabyte_is_too_much_whether_its_size_is_told_or_not(client: httpx.Client, path: str) -> None:
    body = json.dumps({"prompt": "a" * (1 << 20)}).encode()
    headers = {"Content-Type": "application/json"}
    check_error(client.post(path, content=body, headers=headers), 413, "body_too_large")

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]

    check_error(client.post(path, content=pieces(), headers=headers), 413, "body_too_large")


@pytest.mark.parametrize("path", POSTS)
def test_only_json_is_read(client: httpx.Client, path: str) -> None:
    check_error(client.post(path, data={"prompt": "form"}), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"prompt": "\xff"}',
        b'{"prompt": "\\ud800"}',
        b'{"prompt": "a", "temperature": NaN}',
        b'{"prompt": "a", "temperature": 1e999}',
        b'{"prompt": "a"} trailing',
        b"\x00\x01\x02",
        b'{"prompt":' * 100_000,
    ],
    ids=lambda body: repr(body[:30]),
)
@pytest.mark.parametrize("path", ["/v1/generate", "/v1/chat/completions"])
def test_whatever_bytes_come_the_answer_is_an_error_of_the_client(client: httpx.Client, path: str, body: bytes) -> None:
    response = client.post(path, content=body, headers={"Content-Type": "application/json"})
    status = 400 if path == "/v1/chat/completions" else 422
    check_error(response, status, response.json()["error"]["code"])


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/generate", {}, "prompt"),
        ("/v1/generate", {"prompt": ""}, "prompt"),
        ("/v1/generate", {"prompt": " \n\t　"}, "prompt"),
        ("/v1/generate", {"prompt": 5}, "prompt"),
        ("/v1/generate", {"prompt": None}, "prompt"),
        ("/v1/generate", {"prompt": "a", "max_new_token": 5}, "max_new_token"),
        ("/v1/generate", {"prompt": "a", "max_new_tokens": 0}, "max_new_tokens"),
        ("/v1/generate", {"prompt": "a", "max_new_tokens": 10**9}, "max_new_tokens"),
        ("/v1/generate", {"prompt": "a", "max_new_tokens": "5"}, "max_new_tokens"),
        ("/v1/generate", {"prompt": "a", "max_new_tokens": True}, "max_new_tokens"),
        ("/v1/generate", {"prompt": "a", "temperature": -0.1}, "temperature"),
        ("/v1/generate", {"prompt": "a", "top_p": 0}, "top_p"),
        ("/v1/generate", {"prompt": "a", "top_p": 1.5}, "top_p"),
        ("/v1/generate", {"prompt": "a", "top_k": -1}, "top_k"),
        ("/v1/generate", {"prompt": "a", "top_k": 10**9}, "top_k"),
        ("/v1/generate", {"prompt": "a", "repetition_penalty": 0}, "repetition_penalty"),
        ("/v1/generate", {"prompt": "a", "seed": -1}, "seed"),
        ("/v1/generate", {"prompt": "a", "seed": 2**70}, "seed"),
        ("/v1/generate", {"prompt": "a", "stop": [""]}, None),
        ("/v1/generate", {"prompt": "a", "stop": ["x"] * 99}, "stop"),
        ("/v1/qa", {"question": "", "context": "a"}, "question"),
        ("/v1/qa", {"question": "who", "context": 3}, "context"),
        ("/v1/qa", {"question": "who", "context": "a", "top_k": 0}, "top_k"),
        ("/v1/qa", {"question": "who", "context": "a", "min_score": 2}, "min_score"),
        ("/v1/summarize", {"text": "  "}, "text"),
        ("/v1/summarize", {"text": "a", "num_beams": 1000}, "num_beams"),
        ("/v1/summarize", {"text": "a", "min_new_tokens": 9, "max_new_tokens": 4}, "min_new_tokens"),
        ("/v1/infer", {"input": "a", "task": "poetry"}, "task"),
    ],
)
def test_a_bad_field_is_named(client: httpx.Client, path: str, body: dict, param: str | None) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 422, response.text
    check_error(response, 422, response.json()["error"]["code"], param)


@pytest.mark.parametrize(
    "text",
    [
        "before\x00after",
        "👩‍👩‍👧‍👦🏳️‍🌈" * 8,
        "e\u0301\u0302\u0303" * 60,
        "Z̸̢͎̞̏a̵̰̓ļ̴̛g̷̱̈o̶͎͝",
        "\u202e\u200b\ufeff",
        "<pad></s><s><generation><qa><sep>",
        "灯塔" * 100,
    ],
    ids=ascii,
)
def test_unusual_text_is_text(client: httpx.Client, text: str) -> None:
    written = client.post("/v1/generate", json={"prompt": text, "max_new_tokens": 4, "temperature": 0})
    assert written.status_code == 200, written.text
    context = f"{text} {CONTEXT} {text}"
    found = client.post("/v1/qa", json={"question": f"Who built it? {text[:20]}", "context": context, "top_k": 3})
    assert found.status_code == 200, found.text
    assert all(context[each["start"] : each["end"]] == each["text"] for each in found.json()["answers"])
    summary = client.post("/v1/summarize", json={"text": text, "max_new_tokens": 16})
    assert summary.status_code == 200, summary.text


def test_an_emoji_streams_in_whole_code_points(client: httpx.Client) -> None:
    body = {"prompt": "🎉 " * 20, "max_new_tokens": 48, "temperature": 1.5, "seed": 5, "stream": True}
    with client.stream("POST", "/v1/generate", json=body) as response:
        text = b"".join(response.iter_raw()).decode("utf-8")
    deltas = [json.loads(line[6:])["delta"] for line in text.splitlines() if line.startswith("data: {")]
    assert len(deltas) > 1
    assert not any(0xD800 <= ord(character) < 0xE000 for delta in deltas for character in delta)


def test_unknown_paths_and_methods_are_in_the_envelope(client: httpx.Client) -> None:
    check_error(client.get("/v2/nothing"), 404, "not_found")
    check_error(client.get("/v1/generate"), 405, "method_not_allowed")
    check_error(client.post("/health/live", json={}), 405, "method_not_allowed")


def test_an_unknown_model_is_not_served(client: httpx.Client) -> None:
    body = {"model": "gpt-17", "prompt": "Hello"}
    check_error(client.post("/v1/completions", json=body), 404, "model_not_found")


def test_a_deadline_that_cannot_be_met_is_an_error(client: httpx.Client) -> None:
    body = {"prompt": CONTEXT, "max_new_tokens": 256, "min_new_tokens": 256}
    response = client.post("/v1/generate", json=body, headers={"X-Request-Timeout-Ms": "20"})
    check_error(response, 504, "deadline_exceeded")
    for value in ("soon", "-5", "0", "nan", "1e99"):
        response = client.post("/v1/generate", json=body, headers={"X-Request-Timeout-Ms": value})
        assert response.status_code == 422, response.text


def test_a_request_s_id_is_honoured_and_returned(client: httpx.Client) -> None:
    response = client.post("/v1/qa", json={}, headers={"X-Request-ID": "one-two-three"})
    assert check_error(response, 422, "missing_field")["request_id"] == "one-two-three"
    made_up = [client.get("/health/live").headers["X-Request-ID"] for _ in range(2)]
    assert len(set(made_up)) == 2


def test_errors_are_counted_by_task_and_code(client: httpx.Client, service: Service) -> None:
    def count() -> float:
        return service.gauge("trident_requests_total", task="qa", code="422")

    before = count()
    client.post("/v1/qa", json={"question": "who"})
    assert count() == before + 1
