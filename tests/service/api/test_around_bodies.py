"""What goes around a body: paths, methods, headers, request ids, the log, and bytes that are no request at all."""

from __future__ import annotations

import socket
from typing import Any

import httpx
import pytest

from tests.service.api.running_gateway import RunningGateway, check_error


def test_unknown_paths_and_methods_are_in_the_envelope(client: httpx.Client) -> None:
    check_error(client.get("/v2/nothing"), 404, "not_found")
    check_error(client.get("/v1/nothing/\u2028%0A"), 404, "not_found")
    check_error(client.post("/v1/generate/", json={}), 404, "not_found")
    response = client.get("/v1/generate")
    check_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"
    check_error(client.post("/health/live", json={}), 405, "method_not_allowed")


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/metrics", "/v1/models", "/v1/models/trident"])
def test_what_can_be_read_has_a_head(client: httpx.Client, path: str) -> None:
    whole, head = client.get(path), client.head(path)
    assert (head.status_code, head.content) == (whole.status_code, b"") == (200, b"")
    assert head.headers["content-type"] == whole.headers["content-type"]


@pytest.mark.parametrize("value", ["soon", "-5", "0", "nan", "1e99", "600001", ""])
def test_a_time_that_makes_no_sense_is_named(client: httpx.Client, value: str) -> None:
    response = client.post("/v1/generate", json={"prompt": "a"}, headers={"X-Request-Timeout-Ms": value})
    check_error(response, 422, "invalid_value", "X-Request-Timeout-Ms")


@pytest.mark.parametrize("given_id", ["one-two-three", "a b", "x" * 128])
def test_a_sane_request_id_is_honoured(client: httpx.Client, given_id: str) -> None:
    for response in (
        client.get("/health/live", headers={"X-Request-ID": given_id}),
        client.post("/v1/qa", json={}, headers={"X-Request-ID": given_id}),
        client.post("/v1/qa", content=b"", headers={"X-Request-ID": given_id}),
    ):
        assert response.headers["X-Request-ID"] == given_id


@pytest.mark.parametrize("given_id", [b"x" * 129, b"\xc3\xa9", b"a\tb"])
def test_another_request_id_is_replaced(client: httpx.Client, given_id: bytes) -> None:
    made_up = client.get("/health/live", headers={b"X-Request-ID": given_id}).headers["X-Request-ID"]
    assert made_up.encode() != given_id
    assert made_up.isalnum()


def test_every_request_is_one_line_of_the_log_with_its_id(gateway: RunningGateway, client: httpx.Client) -> None:
    def lines(request_id: str) -> list[dict[str, Any]]:
        return [event for event in gateway.events() if event.get("request_id") == request_id]

    client.post("/v1/generate", json={"prompt": "a", "max_new_tokens": 1}, headers={"X-Request-ID": "logged-answer"})
    client.post("/v1/generate", json={"prompt": 1}, headers={"X-Request-ID": "logged-error"})
    gateway.wait_until(lambda: bool(lines("logged-error")), "the line of the second request")
    (answer,), (error,) = lines("logged-answer"), lines("logged-error")
    assert (answer["status"], answer["task"], answer["path"]) == (200, "generation", "/v1/generate")
    assert error["status"] == 422
    assert "prompt is 1" in error["error"]


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"BREW /v1/qa HTTP/1.1\r\nX-Request-ID: one\r\n\r\n", 400, "malformed_request"),
        (b"\x16\x03\x01 no HTTP at all\r\n\r\n", 400, "malformed_request"),
        (b"GET /health/live HTTP/1.1\r\nX-Request-ID: two\r\nHost: x\r\nbad header\r\n\r\n", 400, "malformed_request"),
        (
            b"POST /v1/qa HTTP/1.1\r\nX-Request-ID: two\r\nHost: x\r\nContent-Length: 1x\r\n\r\n",
            400,
            "malformed_request",
        ),
        (
            b"POST /v1/qa HTTP/1.1\r\nX-Request-ID: two\r\nHost: x\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
            413,
            "body_too_large",
        ),
    ],
    ids=["method", "no HTTP", "header", "length", "endless"],
)
def test_what_is_no_http_request_is_answered_in_the_envelope(
    gateway: RunningGateway, sent: bytes, status: int, code: str
) -> None:
    address = httpx.URL(gateway.url)
    with socket.create_connection((address.host, address.port or 0), timeout=10) as connection:
        connection.sendall(sent)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = httpx.Headers([line.split(": ", 1) for line in lines[1:]])
    error = check_error(httpx.Response(int(lines[0].split()[1]), headers=headers, content=body), status, code)
    assert headers["Content-Length"] == str(len(body))
    if b"two" in sent:
        assert error["request_id"] == "two"
