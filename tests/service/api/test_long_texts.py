"""Long texts: refused by their bytes where they cannot fit, and few enough of them at work at once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.app import build_app
from service.settings import LocalSettings, Settings
from service.tasks.text_room import SHORT_BYTES
from tests.service.api.running_gateway import RunningGateway, check_error, running_gateway

TEXT_BYTES = 1 << 20
BOOK = "The mill by the sea. " * 20_000


@pytest.fixture(scope="module")
def narrow(nano_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway with room for two books."""
    settings = {"limits__text_bytes_in_flight": TEXT_BYTES}
    with running_gateway(nano_bundle, tmp_path_factory.mktemp("narrow"), **settings) as running:
        yield running
        running.wait_until(running.is_idle, "an idle gateway after all tests", timeout_s=10)
        assert running.stop() == 0


def test_books_wait_for_their_turn_and_short_texts_do_not(narrow: RunningGateway) -> None:
    def ask(context: str, timeout_ms: int) -> int:
        body = {"question": "When?", "context": context}
        headers = {"X-Request-Timeout-Ms": str(timeout_ms)}
        return httpx.post(f"{narrow.url}/v1/qa", json=body, headers=headers, timeout=60).status_code

    held: list[float] = []
    with ThreadPoolExecutor(6) as clients:
        asked = [clients.submit(ask, BOOK, 6_000) for _ in range(6)]
        narrow.wait_until(lambda: narrow.metric("trident_requests_in_flight") == 6, "six requests")
        narrow.wait_until(lambda: narrow.metric("trident_text_bytes_in_flight") == 2 * len(BOOK), "two books at work")
        assert ask("The mill by the sea. ", 60_000) == 200
        assert narrow.metric("trident_text_bytes_in_flight") == 2 * len(BOOK), "the short text waited for a book"
        while not all(each.done() for each in asked):
            held.append(narrow.metric("trident_text_bytes_in_flight"))
    assert len(BOOK) > SHORT_BYTES
    assert max(held) <= TEXT_BYTES
    # 400 and 429 where its windows would take longer than was left when it had had its turn to be tokenised.
    assert {each.result() for each in asked} <= {200, 400, 429, 504}
    narrow.wait_until(narrow.is_idle, "an idle gateway")


@pytest.mark.parametrize(
    ("path", "body", "param", "limit"),
    [
        ("/v1/generate", {"prompt": "a" * 900_000}, "prompt", 2048),
        ("/v1/summarize", {"text": "光" * 300_000}, "text", 2048),
        ("/v1/qa", {"question": "a" * 900_000, "context": "a"}, "question", 286),
        ("/v1/infer", {"input": "a" * 450_000, "context": "a" * 450_000}, "input", 2048),
        ("/v1/infer", {"input": "a" * 900_000}, "input", 2048),
        ("/v1/completions", {"model": "trident", "prompt": "a" * 900_000}, "prompt", 2048),
    ],
    ids=["generate", "summarize", "question", "routed", "routed alone", "completions"],
)
async def test_what_cannot_fit_is_refused_without_being_tokenised(
    nano_bundle: Path, monkeypatch: pytest.MonkeyPatch, path: str, body: dict, param: str, limit: int
) -> None:
    app = build_app(Settings(bundle=nano_bundle, runtime="local", local=LocalSettings(slots=2, threads=1)))

    def encode(*_: object) -> None:
        raise AssertionError("the text is being tokenised")

    monkeypatch.setattr(app.state.gateway.served.codec, "_encode", encode)
    longest = app.state.gateway.served.codec.longest_token
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        error = check_error(await client.post(path, json=body), 400, "context_length_exceeded", param)
    assert f"and {limit} is the limit" in error["message"]
    fewest = int(error["message"].partition("at least ")[2].split()[0])
    assert 900_000 / longest <= fewest <= 900_000 / longest + 3


async def test_too_many_ids_are_refused_for_their_number(nano_bundle: Path) -> None:
    app = build_app(Settings(bundle=nano_bundle, runtime="local", local=LocalSettings(slots=2, threads=1)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://gateway") as client:
        for ids in ([100] * 2048, [-1] * 2048):
            response = await client.post("/v1/completions", json={"model": "trident", "prompt": ids})
            assert "has 2049 tokens" in check_error(response, 400, "context_length_exceeded", "prompt")["message"]


@pytest.mark.parametrize("context", [BOOK * 2, "a" * 900_000, "a." * 450_000], ids=["book", "no border", "letters"])
def test_a_deadline_ends_a_long_text_wherever_it_is(narrow: RunningGateway, context: str) -> None:
    headers = {"X-Request-Timeout-Ms": "40"}
    with ThreadPoolExecutor(8) as clients:
        asked = [
            clients.submit(
                httpx.post,
                f"{narrow.url}/v1/qa",
                json={"question": "When?", "context": context},
                headers=headers,
                timeout=60,
            )
            for _ in range(8)
        ]
        for each in asked:
            check_error(each.result(), 504, "deadline_exceeded")
    narrow.wait_until(narrow.is_idle, "an idle gateway", timeout_s=5)
