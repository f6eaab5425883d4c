"""Requests of one connection: answered in order, one at a time, however their bytes are cut into packets."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn import Config
from uvicorn.server import ServerState

from service.connection.protocol import connections_within
from service.connection.reader import READ_BYTES
from service.settings import LimitSettings

PIPELINE_BYTES = 2048


class Transport(asyncio.Transport):
    """Takes all that is written, and says whether it would read."""

    def __init__(self) -> None:
        super().__init__({"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.2", 80)})
        self.written = b""
        self.reads, self.closed = True, False

    def write(self, data: bytes) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.closed = True

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0


class Recorder:
    """An application that answers when it is told to, with what it was asked."""

    def __init__(self) -> None:
        self.at_once = self.most_at_once = 0
        self.may_answer = asyncio.Event()

    async def __call__(self, scope, receive, send) -> None:
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        await self.may_answer.wait()
        content = b"<%b %b %b>" % (scope["method"].encode(), scope["path"].encode(), body)
        headers = [(b"content-length", b"%d" % len(content))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        # Before its answer is complete, the next request may not begin.
        self.at_once -= 1
        await send({"type": "http.response.body", "body": content})


def begin(application: Recorder) -> tuple[asyncio.BufferedProtocol, Transport]:
    """A connection that was just made."""
    config = Config(application, log_config=None, lifespan="off", ws="none", proxy_headers=False)
    make = connections_within(LimitSettings(pipeline_bytes=PIPELINE_BYTES), lambda _: None)
    reader = make(config=config, server_state=ServerState(), app_state={})
    transport = Transport()
    reader.connection_made(transport)
    return reader, transport


def receive(reader: asyncio.BufferedProtocol, data: bytes) -> int:
    """As the event loop does it; how many bytes were taken."""
    room = reader.get_buffer(-1)
    taken = min(len(room), len(data))
    room[:taken] = data[:taken]
    reader.buffer_updated(taken)
    return taken


async def turn() -> None:
    """Let tasks run."""
    for _ in range(20):
        await asyncio.sleep(0)


BODIES = st.binary(max_size=40) | st.text("\r\n0a", max_size=40).map(str.encode)


@st.composite
def requests(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """The bytes of a request, and how it is echoed."""
    path, body = b"/%d" % draw(st.integers(0, 99)), draw(BODIES)
    before = draw(st.sampled_from([b"", b"\r\n"]))
    kind = draw(st.sampled_from(["bare", "length", "chunks", "offer"]))
    if kind == "bare":
        return before + b"GET %b HTTP/1.1\r\n\r\n" % path, b"<GET %b >" % path
    head = before + b"POST %b HTTP/1.1\r\nHost: x\r\n" % path
    if kind == "offer":
        head += b"Connection: upgrade\r\nUpgrade: h2c\r\n"
    if kind == "chunks":
        size = draw(st.integers(1, 9))
        chunks = [body[start : start + size] for start in range(0, len(body), size)]
        framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
        trailer = draw(st.sampled_from([b"", b"X: y\r\n"]))
        head += b"Transfer-Encoding: chunked\r\n\r\n" + framed + b"0\r\n" + trailer + b"\r\n"
    else:
        head += b"Content-Length: %d\r\n\r\n" % len(body) + body
    return head, b"<POST %b %b>" % (path, body)


@given(st.lists(requests(), min_size=1, max_size=8), st.lists(st.integers(1, 80), min_size=1, max_size=20))
def test_any_cut_gives_the_same_answers(sent: list[tuple[bytes, bytes]], cuts: list[int]) -> None:
    async def talk() -> None:
        application = Recorder()
        application.may_answer.set()
        reader, transport = begin(application)
        rest, index = b"".join(each for each, _ in sent), 0
        while rest:
            piece = rest[: cuts[index % len(cuts)]]
            index += 1
            while piece:
                if not transport.reads:
                    await turn()
                    continue
                taken = receive(reader, piece)
                piece, rest = piece[taken:], rest[taken:]
        for _ in sent:
            await turn()
        answers = transport.written.split(b"HTTP/1.1 200 OK\r\n")[1:]
        assert [each.partition(b"\r\n\r\n")[2] for each in answers] == [echo for _, echo in sent]
        assert application.most_at_once == 1
        reader.connection_lost(None)

    asyncio.run(talk())


@pytest.mark.parametrize("request_", [b"GET /1 HTTP/1.1\r\n\r\n", b"GET /1 HTTP/1.1\r\nX: " + b"x" * 500 + b"\r\n\r\n"])
async def test_what_is_behind_a_request_stays_in_the_socket(request_: bytes) -> None:
    application = Recorder()
    reader, transport = begin(application)
    taken = receive(reader, request_)
    endless = request_ * (1_000_000 // len(request_))
    offset = 0
    while transport.reads:
        offset += receive(reader, endless[offset : offset + READ_BYTES])
    assert offset == PIPELINE_BYTES
    await turn()
    assert (application.most_at_once, transport.reads) == (1, False)
    # The answer has begun, because only what is written finds out that a client has left.
    assert b"HTTP/1.1 ".startswith(transport.written)
    assert transport.written
    application.may_answer.set()
    for _ in range(300):
        await turn()
    assert transport.written.count(b"HTTP/1.1 200 OK\r\n") == (taken + offset) // len(request_)
    assert transport.reads
    reader.connection_lost(None)
