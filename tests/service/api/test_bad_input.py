"""Whatever bytes come, the answer is an error of the client in the one envelope, and the gateway lives on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any
from unittest.mock import ANY

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.api.schemas import GenerateRequest, InferRequest, QaRequest, SummarizeRequest
from service.tasks.writing import SUMMARY_MIN_TOKENS
from tests.service.api.running_gateway import RunningGateway, check_error
from tests.service.api.test_writing import post

POSTS = ("/v1/generate", "/v1/qa", "/v1/summarize", "/v1/infer", "/v1/completions", "/v1/chat/completions")
FIELDS = (
    *("prompt", "text", "question", "context", "input", "task", "model", "messages", "max_new_tokens", "max_tokens"),
    *("min_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "seed", "stop", "stream", "num_beams"),
    *("min_score", "n", "logprobs", "stream_options", "min_tokens", "max_completion_tokens"),
)
JSON = {"Content-Type": "application/json"}
RAW = ("Input should", "List should", "String should", "validation", "unable to parse", "Value error", "None", "True")
"""Of the library that checks fields, and of Python: nobody who sends JSON knows them."""

VALID: dict[str, dict[str, Any]] = {
    "/v1/generate": {"prompt": "a", "max_new_tokens": 2},
    "/v1/qa": {"question": "who", "context": "the mill"},
    "/v1/summarize": {"text": "a", "max_new_tokens": 2},
    "/v1/infer": {"input": "a", "task": "qa", "context": "the mill"},
    "/v1/completions": {"model": "trident", "prompt": "a", "max_tokens": 2},
    "/v1/chat/completions": {"model": "trident", "messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
}
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.integers(0, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["auto", "qa", "trident", "user"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["role", "content", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
unhurried = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "missing_field"),
        (b"{", "invalid_json"),
        (b"[]", "invalid_value"),
        (b"null", "invalid_value"),
        (b'"text"', "invalid_value"),
        (b'{"prompt": "\xff"}', "invalid_json"),
        (b'{"prompt": "\\ud800"}', "invalid_json"),
        (b'{"prompt": "\xed\xa0\x80"}', "invalid_json"),
        (b'{"prompt": "a", "temperature": NaN}', "invalid_json"),
        (b'{"prompt": "a", "temperature": -Infinity}', "invalid_json"),
        (b'{"prompt": "a", "temperature": 1e999}', "invalid_json"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"prompt": "a"} trailing', "invalid_json"),
        (b'\xef\xbb\xbf{"prompt": "a"}', "invalid_json"),
        ('{"prompt": "a"}'.encode("utf-16"), "invalid_json"),
        (b"\x00\x01\x02", "invalid_json"),
        (b'{"prompt":' * 100_000, "invalid_json"),
        (b'{"prompt":' + b"[" * 1000 + b"]" * 1000 + b"}", "invalid_value"),
        (json.dumps({f"field{n}": 1 for n in range(5000)}).encode(), "invalid_value"),
        (json.dumps({"prompt": "a", "n" * 5000: 1}).encode(), "unknown_field"),
    ],
    ids=lambda value: repr(value[:24]),
)
def test_a_body_that_makes_no_sense_is_an_error_of_the_client(client: httpx.Client, body: bytes, code: str) -> None:
    response = client.post("/v1/generate", content=body, headers=JSON)
    assert response.status_code == 422, response.text
    assert response.json()["error"]["code"] == code
    assert len(response.content) < 1000


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        ("/v1/generate", {}, "missing_field", "prompt"),
        ("/v1/generate", {"promt": "a"}, "unknown_field", "promt"),
        ("/v1/generate", {"prompt": ""}, "invalid_value", "prompt"),
        ("/v1/generate", {"prompt": " \n\t\u3000"}, "invalid_value", "prompt"),
        ("/v1/generate", {"prompt": 5}, "invalid_value", "prompt"),
        ("/v1/generate", {"prompt": None}, "invalid_value", "prompt"),
        ("/v1/generate", {"prompt": "a", "max_new_token": 5}, "unknown_field", "max_new_token"),
        ("/v1/generate", {"prompt": "a", "max_new_tokens": 0}, "invalid_value", "max_new_tokens"),
        ("/v1/generate", {"prompt": "a", "max_new_tokens": "5"}, "invalid_value", "max_new_tokens"),
        ("/v1/generate", {"prompt": "a", "max_new_tokens": 5.5}, "invalid_value", "max_new_tokens"),
        ("/v1/generate", {"prompt": "a", "max_new_tokens": True}, "invalid_value", "max_new_tokens"),
        ("/v1/generate", {"prompt": "a", "temperature": -0.1}, "invalid_value", "temperature"),
        ("/v1/generate", {"prompt": "a", "temperature": 2.1}, "invalid_value", "temperature"),
        ("/v1/generate", {"prompt": "a", "top_p": 0}, "invalid_value", "top_p"),
        ("/v1/generate", {"prompt": "a", "top_p": 1.5}, "invalid_value", "top_p"),
        ("/v1/generate", {"prompt": "a", "top_k": -1}, "invalid_value", "top_k"),
        ("/v1/generate", {"prompt": "a", "repetition_penalty": 0}, "invalid_value", "repetition_penalty"),
        ("/v1/generate", {"prompt": "a", "repetition_penalty": 1e-38}, "invalid_value", "repetition_penalty"),
        ("/v1/generate", {"prompt": "a", "repetition_penalty": 11}, "invalid_value", "repetition_penalty"),
        ("/v1/generate", {"prompt": "a", "seed": -1}, "invalid_value", "seed"),
        ("/v1/generate", {"prompt": "a", "seed": 2**63}, "invalid_value", "seed"),
        ("/v1/generate", {"prompt": "a", "stop": [""]}, "invalid_value", "stop.0"),
        ("/v1/generate", {"prompt": "a", "stop": ["x"] * 5}, "invalid_value", "stop"),
        ("/v1/generate", {"prompt": "a", "stop": "x" * 65}, "invalid_value", "stop.0"),
        ("/v1/generate", {"prompt": "a", "stream": "yes"}, "invalid_value", "stream"),
        ("/v1/qa", {"question": "", "context": "a"}, "invalid_value", "question"),
        ("/v1/qa", {"question": "who", "context": ""}, "invalid_value", "context"),
        ("/v1/qa", {"question": "who", "context": 3}, "invalid_value", "context"),
        ("/v1/qa", {"question": "who"}, "missing_field", "context"),
        ("/v1/qa", {"question": "who", "context": "a", "top_k": 0}, "invalid_value", "top_k"),
        ("/v1/qa", {"question": "who", "context": "a", "top_k": 21}, "invalid_value", "top_k"),
        ("/v1/qa", {"question": "who", "context": "a", "min_score": 2}, "invalid_value", "min_score"),
        ("/v1/summarize", {"text": "  "}, "invalid_value", "text"),
        ("/v1/summarize", {"text": "a", "temperature": 0}, "unknown_field", "temperature"),
        ("/v1/infer", {"input": "a", "task": "poetry"}, "invalid_value", "task"),
        ("/v1/infer", {"input": "a", "context": " "}, "invalid_value", "context"),
        ("/v1/infer", {"input": "a", "stream": True}, "unknown_field", "stream"),
    ],
)
def test_a_bad_field_is_named(client: httpx.Client, path: str, body: dict[str, Any], code: str, param: str) -> None:
    check_words(check_error(client.post(path, json=body), 422, code, param))


def check_words(error: dict[str, Any]) -> None:
    """The message is one line for whoever wrote the request."""
    assert "\n" not in error["message"]
    assert not [raw for raw in RAW if raw in error["message"]], error


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("/v1/generate", {"prompt": 5}, "prompt is 5: it should be a string"),
        ("/v1/generate", {"prompt": None}, "prompt is null: it should be a string"),
        ("/v1/generate", {"prompt": ""}, "prompt is '': it should not be empty"),
        ("/v1/generate", {"prompt": " "}, "prompt is ' ': it should hold more than white space"),
        ("/v1/generate", {"prompt": {"a": [None, True]}}, "prompt is {'a': [null, true]}: it should be a string"),
        ("/v1/generate", {"temperature": 7}, "temperature is 7: it should be at most 2"),
        ("/v1/generate", {"top_p": 0}, "top_p is 0: it should be more than 0"),
        ("/v1/generate", {"temperature": "1"}, "temperature is '1': it should be a number"),
        ("/v1/generate", {"max_new_tokens": 0}, "max_new_tokens is 0: it should be at least 1"),
        ("/v1/generate", {"max_new_tokens": "5"}, "max_new_tokens is '5': it should be a whole number"),
        ("/v1/generate", {"max_new_tokens": 2.5}, "max_new_tokens is 2.5: it should be a whole number"),
        ("/v1/generate", {"stream": "yes"}, "stream is 'yes': it should be true or false"),
        ("/v1/generate", {"stop": ["a"] * 5}, "stop is ['a', 'a', 'a', 'a', 'a']: it should have at most 4 items"),
        ("/v1/generate", {"stop": "a" * 65}, "it should have at most 64 characters"),
        ("/v1/generate", {"stop": {}}, "stop is {}: it should be an array"),
        ("/v1/infer", {"task": "poetry"}, "it should be 'auto', 'generation', 'qa' or 'summary'"),
        ("/v1/chat/completions", {"messages": []}, "messages is []: it should not be empty"),
        ("/v1/chat/completions", {"messages": "hi"}, "messages is 'hi': it should be an array"),
        ("/v1/chat/completions", {"messages": ["hi"]}, "messages.0 is 'hi': it should be an object"),
        ("/v1/chat/completions", {"messages": [{"role": "me"}]}, "it should be 'system', 'developer', 'user'"),
        ("/v1/chat/completions", {"messages": [{}]}, "messages.0.role is missing: send it"),
        ("/v1/chat/completions", {"stream_options": 1}, "stream_options is 1: it should be an object"),
        ("/v1/completions", {"prompt": []}, "prompt is []: it should be one text with more than white space"),
        ("/v1/completions", {"prompt": ["a", "b"]}, "it should be one text with more than white space"),
        ("/v1/completions", {"max_tokens": 1.5}, "max_tokens is 1.5: it should be a whole number"),
    ],
)
def test_a_message_says_what_the_value_should_be(
    client: httpx.Client, path: str, fields: dict[str, Any], said: str
) -> None:
    response = client.post(path, json={**VALID[path], **fields})
    error = check_error(response, response.status_code, "missing_field" if "missing" in said else "invalid_value", ANY)
    assert said in error["message"]
    check_words(error)


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "at line 1, column 2, where it ends: correct it there"),
        (b'{"prompt": "a",}', "trailing comma is not allowed, at line 1, column 15, where it says ',}'"),
        (b"{\n 'prompt': 'a'}", """at line 2, column 2, where it says "'prompt': 'a'}\""""),
        (b'{"prompt": True}', "column 12, where it says 'True}'"),
        (b"prompt=a", "column 1, where it says 'prompt=a'"),
        (b'{"a": 1} {"a": 2}', """unexpected content after document, at line 1, column 10, where it says '{"a": 2}'"""),
        (b'{"prompt": "caf\xe9"}', "the body is not UTF-8: byte 15 is 0xe9: send JSON in UTF-8"),
        ("{}".encode("utf-16-le"), "where it says '\\x00}\\x00'"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_a_body_that_is_no_json_is_told_where_it_breaks(
    client: httpx.Client, path: str, body: bytes, said: str
) -> None:
    response = client.post(path, content=body, headers=JSON)
    error = check_error(response, 400 if "completions" in path else 422, "invalid_json")
    assert said in error["message"]


@pytest.mark.parametrize(
    ("path", "required", "optional"),
    [
        (
            "/v1/generate",
            {"prompt": "a"},
            {
                "max_new_tokens": 128,
                "min_new_tokens": 0,
                "temperature": 1.0,
                "top_p": 1.0,
                "top_k": 0,
                "repetition_penalty": 1.0,
                "seed": 5,
                "stop": [],
                "stream": False,
            },
        ),
        ("/v1/qa", {"question": "who", "context": "the mill"}, {"top_k": 1, "min_score": 0.0}),
        (
            "/v1/summarize",
            {"text": "the mill by the sea"},
            {"max_new_tokens": 128, "min_new_tokens": SUMMARY_MIN_TOKENS, "num_beams": None, "stream": False},
        ),
        ("/v1/infer", {"input": "who"}, {"context": None, "task": "auto"}),
    ],
)
def test_null_is_the_default_of_every_optional_field(
    client: httpx.Client, path: str, required: dict[str, Any], optional: dict[str, Any]
) -> None:
    fields = {"/v1/generate": GenerateRequest, "/v1/qa": QaRequest, "/v1/summarize": SummarizeRequest}
    model = fields.get(path, InferRequest)
    assert model.model_fields.keys() == required.keys() | optional.keys()
    nulls = dict.fromkeys(optional)
    post(client, path, **required, **nulls)
    assert model.model_validate({**required, **nulls}) == model.model_validate(required)
    for name, value in optional.items():
        post(client, path, **required, **{name: None})
        assert name == "seed" or model.model_validate({**required, name: None}) == model.model_validate(
            {**required, name: value}
        )
    for name in required:
        check_error(client.post(path, json={**required, name: None}), 422, "invalid_value", name)
    check_error(client.post(path, json={**required, "no_such_field": None}), 422, "unknown_field", "no_such_field")


def test_an_error_says_value_and_limit(client: httpx.Client) -> None:
    error = check_error(
        client.post("/v1/generate", json={"prompt": "a", "temperature": 7}), 422, "invalid_value", "temperature"
    )
    assert "temperature is 7: it should be at most 2" in error["message"]


@pytest.mark.parametrize(
    "text",
    [
        "before\x00after",
        "👩‍👩‍👧‍👦🏳️‍🌈" * 40,
        "e\u0301\u0302\u0303" * 60,
        "\u202e\u200b\ufeff",
        "<pad></s><s><generation><qa><sep>",
    ],
    ids=ascii,
)
def test_unusual_text_is_text(client: httpx.Client, text: str) -> None:
    post(client, "/v1/generate", prompt=text, max_new_tokens=2)
    post(client, "/v1/summarize", text=text, max_new_tokens=2)
    found = post(client, "/v1/qa", question=text[:30], context=f"{text} mill {text}", top_k=5)
    assert all(f"{text} mill {text}"[each["start"] : each["end"]] == each["text"] for each in found["answers"])


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "application/jsonp"},
        {**JSON, "Content-Encoding": "gzip"},
    ],
    ids=str,
)
def test_only_plain_json_is_read(client: httpx.Client, path: str, headers: dict[str, str]) -> None:
    param = "Content-Encoding" if "Content-Encoding" in headers else "Content-Type"
    check_error(client.post(path, content=b"{}", headers=headers), 415, "unsupported_media_type", param)


@pytest.mark.parametrize("encoding", ["identity", "Identity", ""])
def test_a_body_that_is_declared_as_not_encoded_is_read(client: httpx.Client, encoding: str) -> None:
    headers = {**JSON, "Content-Encoding": encoding}
    body = b'{"prompt": "a", "max_new_tokens": 1}'
    assert client.post("/v1/generate", content=body, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("body", "named"),
    [
        (b"null", "null"),
        (b"true", "a boolean"),
        (b"7", "a number"),
        (b"7.5", "a number"),
        (b'"text"', "a string"),
        (b"[]", "an array"),
    ],
)
def test_a_body_that_is_no_object_is_called_by_its_name_in_json(client: httpx.Client, body: bytes, named: str) -> None:
    error = check_error(client.post("/v1/qa", content=body, headers=JSON), 422, "invalid_value")
    assert error["message"] == f"the body is {named}: send an object"


def test_an_unknown_field_without_a_name_is_told_as_such(client: httpx.Client) -> None:
    error = check_error(client.post("/v1/generate", json={"prompt": "a", "": 1}), 422, "unknown_field", "")
    assert error["message"].startswith("'' is no field of this request")


@pytest.mark.parametrize(
    "media_type", ["application/json; charset=utf-8", "Application/JSON", "application/vnd.a+json"]
)
def test_json_may_be_called_by_its_other_names(client: httpx.Client, media_type: str) -> None:
    body = b'{"prompt": "a", "max_new_tokens": 1}'
    assert client.post("/v1/generate", content=body, headers={"Content-Type": media_type}).status_code == 200


@pytest.mark.parametrize("path", POSTS)
def test_a_body_above_the_limit_is_refused_whether_its_size_is_told_or_not(client: httpx.Client, path: str) -> None:
    body = json.dumps({"prompt": "a" * (1 << 20)}).encode()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]

    for content in (body, pieces()):
        response = client.post(path, content=content, headers=JSON)
        check_error(response, 413, "body_too_large")
        assert response.headers["connection"] == "close"


def test_an_endless_body_is_answered_as_soon_as_it_is_too_long(tight_gateway: RunningGateway) -> None:
    """The client never ends its body; the answer comes all the same, and nothing more is read."""
    address = httpx.URL(tight_gateway.url)
    head = (
        "POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection((address.host, address.port or 0), timeout=10) as connection:
        connection.sendall(head.encode())
        for _ in range(5):
            connection.sendall(b"400\r\n" + b" " * 1024 + b"\r\n")
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"4096" in answer


def test_a_declared_size_above_the_limit_is_refused_before_the_body_comes(tight_gateway: RunningGateway) -> None:
    address = httpx.URL(tight_gateway.url)
    head = "POST /v1/qa HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 4097\r\n\r\n"
    with socket.create_connection((address.host, address.port or 0), timeout=10) as connection:
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def check_refused_or_answered(response: httpx.Response) -> None:
    assert response.status_code in {200, 400, 404, 413, 415, 422}, (response.status_code, response.text)
    if response.status_code != 200:
        check_words(check_error(response, response.status_code, response.json()["error"]["code"], ANY))


@unhurried
@given(body=st.binary(max_size=200), path=st.sampled_from(POSTS))
def test_any_bytes_are_answered(client: httpx.Client, body: bytes, path: str) -> None:
    check_refused_or_answered(client.post(path, content=body, headers=JSON))


@unhurried
@given(
    fields=st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=8),
    valid=st.booleans(),
    path=st.sampled_from(POSTS),
)
def test_any_json_is_answered(client: httpx.Client, fields: dict[str, Any], valid: bool, path: str) -> None:
    body = {**VALID[path], **fields} if valid else fields
    check_refused_or_answered(client.post(path, json=body))


@unhurried
@given(
    headers=st.dictionaries(
        st.sampled_from([b"X-Request-ID", b"X-Request-Timeout-Ms", b"Content-Type", b"Content-Encoding", b"Accept"]),
        st.binary(max_size=40),
        max_size=4,
    )
)
def test_any_headers_are_answered(gateway: RunningGateway, headers: dict[bytes, bytes]) -> None:
    body = b'{"prompt": "a", "max_new_tokens": 1}'
    lines = [b"POST /v1/generate HTTP/1.1", b"Host: x", b"Connection: close", b"Content-Length: %d" % len(body)]
    lines += [name + b": " + value for name, value in {b"Content-Type": b"application/json", **headers}.items()]
    address = httpx.URL(gateway.url)
    with socket.create_connection((address.host, address.port or 0), timeout=10) as connection:
        connection.sendall(b"\r\n".join(lines) + b"\r\n\r\n" + body)
        status = int(connection.recv(65536).split(b" ", 2)[1])
    # 400: the parser refuses control characters before there is a request to answer.
    assert status in {200, 400, 413, 415, 422, 504}
