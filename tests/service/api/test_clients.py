"""The clients that people use, as they come: each is answered, and goes on over the connection it has."""

from __future__ import annotations

import asyncio
import http.client
import json
import shutil
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import aiohttp
import httpx
import openai
import pytest
import requests
import urllib3

from tests.service.api.running_gateway import RunningGateway

PATH = "/v1/completions"
BODY = {"model": "trident", "prompt": "The river", "max_tokens": 3, "temperature": 0}
LARGE = {**BODY, "metadata": {"note": "x" * 500_000}}
WRONG = {**BODY, "max_tokens": -1}

Answers = list[tuple[int, dict[str, Any]]]
"""Status and JSON of each request."""


def by_httpx(url: str, bodies: list[dict]) -> Answers:
    with httpx.Client(timeout=60) as client:
        answers = [client.post(url, json=body) for body in bodies]
    return [(answer.status_code, answer.json()) for answer in answers]


def by_httpx_in_chunks(url: str, bodies: list[dict]) -> Answers:
    headers = {"Content-Type": "application/json"}
    with httpx.Client(timeout=60, headers=headers) as client:
        answers = [client.post(url, content=iter([json.dumps(body).encode()])) for body in bodies]
    return [(answer.status_code, answer.json()) for answer in answers]


def by_requests(url: str, bodies: list[dict]) -> Answers:
    with requests.Session() as session:
        answers = [session.post(url, json=body, timeout=60) for body in bodies]
    return [(answer.status_code, answer.json()) for answer in answers]


def by_urllib3(url: str, bodies: list[dict]) -> Answers:
    with urllib3.PoolManager(timeout=60, retries=False) as pool:
        answers = [pool.request("POST", url, json=body) for body in bodies]
    return [(answer.status, answer.json()) for answer in answers]


def by_aiohttp(url: str, bodies: list[dict]) -> Answers:
    async def talk() -> Answers:
        async with aiohttp.ClientSession() as session:
            found = []
            for body in bodies:
                async with session.post(url, json=body) as answer:
                    found.append((answer.status, await answer.json()))
            return found

    return asyncio.run(talk())


def by_openai(url: str, bodies: list[dict]) -> Answers:
    found: Answers = []
    with openai.OpenAI(base_url=url.removesuffix("/completions"), api_key="unused", max_retries=0) as client:
        for body in bodies:
            try:
                known = {name: value for name, value in body.items() if name != "metadata"}
                further = {"metadata": body.get("metadata")}
                found.append((200, client.completions.create(**known, extra_body=further).model_dump()))
            except openai.APIStatusError as error:
                found.append((error.status_code, {"error": error.body}))
    return found


def by_standard_library(url: str, bodies: list[dict]) -> Answers:
    address = httpx.URL(url)
    connection, found = http.client.HTTPConnection(address.host, address.port, timeout=60), []
    for body in bodies:
        connection.request("POST", address.path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found.append((answer.status, json.load(answer)))
    connection.close()
    return found


def by_half_closed_socket(url: str, bodies: list[dict]) -> Answers:
    address, found = httpx.URL(url), []
    for body in bodies:
        content = json.dumps(body).encode()
        head = f"POST {address.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        with socket.create_connection((address.host, address.port), timeout=60) as connection:
            connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
            connection.shutdown(socket.SHUT_WR)
            answer = http.client.HTTPResponse(connection, method="POST")
            answer.begin()
            found.append((answer.status, json.load(answer)))
            assert connection.recv(1) == b"", "nothing more can come"
    return found


def by_curl(url: str, bodies: list[dict], *options: str) -> Answers:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    found: Answers = []
    for body in bodies:
        command = ["curl", "--silent", "--show-error", *options, "--write-out", "\n%{http_code}", "--json", "@-", url]
        done = subprocess.run(command, input=json.dumps(body), capture_output=True, text=True, check=True, timeout=60)
        content, _, status = done.stdout.rpartition("\n")
        found.append((int(status), json.loads(content)))
    return found


def by_curl_with_http2(url: str, bodies: list[dict]) -> Answers:
    return by_curl(url, bodies, "--http2")


def by_curl_in_http10(url: str, bodies: list[dict]) -> Answers:
    return by_curl(url, bodies, "--http1.0")


CLIENTS: list[Callable[[str, list[dict]], Answers]] = [
    by_httpx,
    by_httpx_in_chunks,
    by_requests,
    by_urllib3,
    by_aiohttp,
    by_openai,
    by_standard_library,
    by_half_closed_socket,
    by_curl,
    by_curl_with_http2,
    by_curl_in_http10,
]


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
def test_every_client_is_answered(gateway: RunningGateway, client: Callable[[str, list[dict]], Answers]) -> None:
    first, large, wrong, last = client(f"{gateway.url}{PATH}", [BODY, LARGE, WRONG, BODY])
    assert [first[0], large[0], wrong[0], last[0]] == [200, 200, 400, 200]
    texts = [answer["choices"][0]["text"] for _, answer in (first, large, last)]
    assert texts == [texts[0]] * 3
    assert first[1]["usage"]["completion_tokens"] == 3
    assert wrong[1]["error"]["param"] == "max_tokens"


def streamed_by_httpx(url: str, body: dict) -> str:
    with httpx.stream("POST", url, json=body, timeout=60) as answer:
        return answer.read().decode()


def streamed_by_requests(url: str, body: dict) -> str:
    with requests.post(url, json=body, stream=True, timeout=60) as answer:
        return b"".join(answer.iter_content(7)).decode()


def streamed_by_aiohttp(url: str, body: dict) -> str:
    async def talk() -> str:
        async with aiohttp.ClientSession() as session, session.post(url, json=body) as answer:
            return b"".join([piece async for piece in answer.content.iter_any()]).decode()

    return asyncio.run(talk())


def streamed_by_half_closed_socket(url: str, body: dict) -> str:
    address, content = httpx.URL(url), json.dumps(body).encode()
    head = f"POST {address.path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection((address.host, address.port), timeout=60) as connection:
        connection.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        connection.shutdown(socket.SHUT_WR)
        answer = http.client.HTTPResponse(connection, method="POST")
        answer.begin()
        return answer.read().decode()


STREAMS = [streamed_by_httpx, streamed_by_requests, streamed_by_aiohttp, streamed_by_half_closed_socket]


@pytest.mark.parametrize("client", STREAMS, ids=lambda client: client.__name__)
def test_every_client_reads_streams(gateway: RunningGateway, client: Callable[[str, dict], str]) -> None:
    data = client(f"{gateway.url}{PATH}", {**BODY, "stream": True, "max_tokens": 20, "ignore_eos": True})
    *events, done = [line.removeprefix("data: ") for line in data.splitlines() if line.startswith("data: ")]
    assert done == "[DONE]"
    assert json.loads(events[-1])["choices"][0]["finish_reason"] == "length"
