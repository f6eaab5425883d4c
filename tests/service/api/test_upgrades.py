"""Requests that offer another protocol, as Java's standard client and `curl --http2` do: served as HTTP/1.1."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.service.api.running_gateway import RunningGateway
from tests.service.api.test_slow_clients import WHOLE, connect, rest

BODY = json.dumps({"prompt": "The river", "max_new_tokens": 2, "temperature": 0}).encode()
OFFERS = {
    "java": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n",
    "lower case": b"upgrade: H2C\r\nconnection: keep-alive, upgrade\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "unknown": b"Connection: upgrade\r\nUpgrade: tls/1.0, foo/2\r\n",
}
HEAD = b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nX-Request-ID: offer\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
CHUNKS = b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n"


def answers(gateway: RunningGateway, sent: list[bytes], count: int) -> list[bytes]:
    """Status lines of as many answers to what is sent in these pieces, and then of one more request."""
    with connect(gateway) as connection:
        for piece in sent:
            connection.sendall(piece)
        got = b""
        while got.count(b"HTTP/1.1 ") < count or not got.endswith(b"}"):
            piece = connection.recv(65536)
            assert piece, got
            got += piece
        # Whatever came, the connection goes on.
        connection.sendall(WHOLE)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
    return [b"HTTP/1.1 " + answer for answer in got.split(b"HTTP/1.1 ")[1:]]


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("body", [LENGTH, CHUNKS], ids=["length", "chunks"])
def test_a_body_behind_an_offer_is_read(gateway: RunningGateway, offer: bytes, body: bytes) -> None:
    (answer,) = answers(gateway, [HEAD + offer + body], 1)
    assert answer.startswith(b"HTTP/1.1 200 "), answer
    assert b"x-request-id: offer" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["usage"]["completion_tokens"] == 2


def pieces(whole: bytes, size: int) -> Iterator[bytes]:
    return (whole[start : start + size] for start in range(0, len(whole), size))


@pytest.mark.parametrize("size", [1, 7, 100])
def test_it_may_come_in_pieces(gateway: RunningGateway, size: int) -> None:
    (answer,) = answers(gateway, list(pieces(HEAD + OFFERS["java"] + LENGTH, size)), 1)
    assert answer.startswith(b"HTTP/1.1 200 "), answer


def test_offers_may_be_pipelined(gateway: RunningGateway) -> None:
    get = WHOLE[:-2] + OFFERS["java"] + b"\r\n"
    found = answers(gateway, [(get + HEAD + OFFERS["java"] + LENGTH + HEAD + LENGTH) * 2 + get * 200], 206)
    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in found)


def test_a_client_that_waits_to_continue_is_told(gateway: RunningGateway) -> None:
    head, _, body = (HEAD + OFFERS["java"] + b"Expect: 100-continue\r\n" + LENGTH).partition(b"\r\n\r\n")
    with connect(gateway, head + b"\r\n\r\n") as connection:
        assert connection.recv(65536) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (HEAD + OFFERS["java"] + b"X: " + b"x" * 70_000 + b"\r\n" + LENGTH, b"431"),
        (HEAD + OFFERS["java"] + b"Content-Length: 9999999\r\n\r\n", b"413"),
        (b"CONNECT x:443 HTTP/1.1\r\nHost: x\r\n\r\n", b"400"),
        (b"GET http://[ HTTP/1.1\r\nHost: x\r\n" + OFFERS["java"] + b"\r\n" + WHOLE, b"400"),
        (HEAD + OFFERS["java"] + b"Content-Length: 0\r\n\r\n", b"422"),
    ],
    ids=["head", "body", "CONNECT", "URL", "empty"],
)
def test_limits_hold_behind_an_offer(gateway: RunningGateway, sent: bytes, status: bytes) -> None:
    with connect(gateway, sent) as connection:
        answer = rest(connection) if status != b"422" else connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 " + status)
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")
def test_curl_with_http2_is_answered(gateway: RunningGateway) -> None:
    command = ["curl", "--silent", "--show-error", "--http2", "--json", BODY.decode(), f"{gateway.url}/v1/generate"]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert (
        json.loads(result.stdout)["usage"]
        == httpx.post(f"{gateway.url}/v1/generate", content=BODY, headers={"Content-Type": "application/json"}).json()[
            "usage"
        ]
    )


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Post {
    public static void main(String[] arguments) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 0; i < 3; i++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .header("Content-Type", "application/json")
                .POST(HttpRequest.BodyPublishers.ofString(arguments[1])).build();
            HttpResponse<String> response = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.body());
        }
    }
}
"""


def has_jdk() -> bool:
    """Whether `java` runs source files."""
    if shutil.which("java") is None:
        return False
    modules = subprocess.run(["java", "--list-modules"], capture_output=True, text=True, check=False).stdout
    return "jdk.compiler" in modules and "java.net.http" in modules


@pytest.mark.slow
@pytest.mark.skipif(not has_jdk(), reason="needs a JDK (Debian: apt install openjdk-17-jdk-headless)")
def test_java_s_standard_client_is_answered(gateway: RunningGateway, tmp_path: Path) -> None:
    source = tmp_path / "Post.java"
    source.write_text(JAVA)
    command = ["java", str(source), f"{gateway.url}/v1/generate", BODY.decode()]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["200"] * 3
