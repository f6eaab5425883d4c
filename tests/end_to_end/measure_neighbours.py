"""What short questions wait for beside books, and streams beside long prompts, on a real Triton.

    python -m tests.end_to_end.measure_neighbours --output docs/results/neighbours.json

Every figure beside company stands with the same moment's figure alone: they take turns, round by round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
from tokenizers import Tokenizer

from tests.end_to_end.conftest import SHIPPED_BUNDLE, Service, start_service, stop_service

PATIENT = {"X-Request-Timeout-Ms": "600000"}
TINY = {"question": "Who built the mill?", "context": "The mill by the sea was built by Elias Berg."}
SUMMARY_TOKENS, PROMPT_TOKENS = 1983, 512
BOOK_BYTES = (200_000, 1_000_000)
LOOK_S = 0.02
"""Between two looks at Triton's processor time, whose unit is half as long."""


@dataclass(kw_only=True, slots=True)
class Questions:
    """Tiny questions, in seconds."""

    book_bytes: int
    alone_s: list[float] = field(default_factory=list)
    beside_four_books_s: list[float] = field(default_factory=list)
    after_they_left_s: list[float] = field(default_factory=list)
    until_triton_is_idle_s: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """What the questions waited for."""
        return {
            "alone_median_s": statistics.median(self.alone_s),
            "beside_median_s": statistics.median(self.beside_four_books_s),
            "beside_p95_s": quantile(self.beside_four_books_s, 0.95),
            "after_they_left_worst_s": max(self.after_they_left_s),
            "until_triton_is_idle_worst_s": max(self.until_triton_is_idle_s),
        }


@dataclass(kw_only=True, slots=True)
class Streams:
    """Some streams and what came beside them."""

    streams: int
    first_token_alone_s: list[float] = field(default_factory=list)
    first_token_beside_s: list[float] = field(default_factory=list)
    gaps_alone_s: list[list[float]] = field(default_factory=list)
    gaps_beside_summary_s: list[list[float]] = field(default_factory=list)
    gaps_beside_prompts_s: list[list[float]] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """What streams and summaries cost each other."""
        ratios = [
            beside / alone for beside, alone in zip(self.first_token_beside_s, self.first_token_alone_s, strict=True)
        ]
        beside = [gap for gaps in self.gaps_beside_prompts_s for gap in gaps]
        return {
            "gap_alone_median_s": statistics.median(gap for gaps in self.gaps_alone_s for gap in gaps),
            "largest_gap_beside_summary_s": max(map(max, self.gaps_beside_summary_s)),
            "first_token_ratio_median": statistics.median(ratios),
            "first_token_ratio_of_best": min(self.first_token_beside_s) / min(self.first_token_alone_s),
            "gap_beside_prompts_median_s": statistics.median(beside),
            "gap_beside_prompts_p99_s": quantile(beside, 0.99),
            "p99_over_median": quantile(beside, 0.99) / statistics.median(beside),
        }


def quantile(values: list[float], share: float) -> float:
    """The value that so many of them do not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def text_of(tokens: int) -> str:
    """A text that a summary's or prompt's source of so many tokens holds: two of them are the task's and the end."""
    tokenizer = Tokenizer.from_file(str(SHIPPED_BUNDLE / "tokenizer.json"))
    words = [word for number in range(tokens) for word in f"In year {number} the mill by the sea stood still.".split()]
    count = tokens
    while len(tokenizer.encode(" ".join(words[:count]), add_special_tokens=False).ids) > tokens - 2:
        count -= 1
    return " ".join(words[:count])


@asynccontextmanager
async def company(count: int, work: Callable[[int], Any]) -> AsyncIterator[None]:
    """So many clients that work for ever; they leave at the end, in the midst of it."""

    async def client(number: int) -> None:
        while True:
            await work(number)

    clients = [asyncio.create_task(client(number)) for number in range(count)]
    try:
        yield
        failed = [each for each in clients if each.done()]
        assert not failed, failed
    finally:
        for each in clients:
            each.cancel()
        await asyncio.gather(*clients, return_exceptions=True)


class Bench:
    """Clients of one service."""

    def __init__(self, service: Service, client: httpx.AsyncClient) -> None:
        self._service, self._client = service, client
        self._triton = [service.triton(), *service.triton().children(recursive=True)]

    async def ask(self, body: dict[str, str] = TINY, headers: dict[str, str] | None = None) -> float:
        """Seconds of a question."""
        began_s = time.perf_counter()
        response = await self._client.post("/v1/qa", json=body, headers=headers)
        assert response.status_code == 200, response.text
        return time.perf_counter() - began_s

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncIterator[float]:
        """When each event of a stream came."""
        async with self._client.stream("POST", path, json={**body, "stream": True}, headers=PATIENT) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if line.startswith("data: "):
                    yield time.perf_counter()

    async def questions(self, book_bytes: int, rounds: int) -> Questions:
        """Tiny questions alone, beside four books, and after their clients have left."""
        found = Questions(book_bytes=book_bytes)
        sentence = "The mill by the sea stood still. "
        book = {"question": "When did the mill stop?", "context": sentence * (book_bytes // len(sentence))}
        for number in range(rounds):
            found.alone_s += [await self.ask() for _ in range(5)]
            async with company(4, lambda _: self.ask(book, PATIENT)):
                await asyncio.sleep(1.5)
                for _ in range(10):
                    found.beside_four_books_s.append(await self.ask())
                    await asyncio.sleep(0.05)
            if number % 2:
                found.after_they_left_s.append(await self.ask())
            else:
                found.until_triton_is_idle_s.append(await self._until_idle())
            await asyncio.to_thread(self._service.wait_until, self._service.is_idle, "an idle service")
        return found

    async def streams(self, count: int, rounds: int) -> Streams:
        """A long summary alone and beside streams, and streams alone and beside prompts that keep coming."""
        found = Streams(streams=count)
        summary = {"text": text_of(SUMMARY_TOKENS), "max_new_tokens": 30}
        prompt = {"prompt": text_of(PROMPT_TOKENS), "max_new_tokens": 2, "temperature": 0}
        for _ in range(rounds):
            found.first_token_alone_s.append((await self._until_first(summary))[1])
            watch = Watch(self, count)
            async with company(count, watch.follow):
                await watch.all_run()
                began_s = time.perf_counter()
                await asyncio.sleep(1)
                found.gaps_alone_s.append(watch.gaps(began_s))
                began_s, first_s = await self._until_first(summary)
                found.first_token_beside_s.append(first_s)
                found.gaps_beside_summary_s.append(watch.gaps(began_s))
                await asyncio.sleep(1)
                began_s = time.perf_counter()
                for _ in range(6):
                    response = await self._client.post("/v1/generate", json=prompt, headers=PATIENT)
                    assert response.status_code == 200, response.text
                found.gaps_beside_prompts_s.append(watch.gaps(began_s))
        return found

    async def _until_first(self, summary: dict[str, Any]) -> tuple[float, float]:
        """When a summary was asked for, and the seconds until its first token."""
        began_s = time.perf_counter()
        times = [when_s async for when_s in self.stream("/v1/summarize", summary)]
        return began_s, times[0] - began_s

    async def _until_idle(self) -> float:
        """Seconds until Triton computes nothing any more: it has taken no time of the processor twice running."""
        began_s = idle_s = time.perf_counter()
        used_s, quiet = self._used_s(), 0
        while quiet < 5:
            await asyncio.sleep(LOOK_S)
            before_s, used_s = used_s, self._used_s()
            if used_s > before_s:
                idle_s, quiet = time.perf_counter(), 0
            else:
                quiet += 1
        return idle_s - began_s

    def _used_s(self) -> float:
        times = [each.cpu_times() for each in self._triton]
        return sum(each.user + each.system for each in times)


class Watch:
    """When the tokens of some streams came."""

    def __init__(self, bench: Bench, count: int) -> None:
        self._bench = bench
        self._times: list[list[list[float]]] = [[] for _ in range(count)]
        self._begun = asyncio.Semaphore(0)

    async def follow(self, number: int) -> None:
        """One stream of many tokens."""
        body = {"prompt": f"The river {number}", "max_new_tokens": 500, "min_new_tokens": 500, "temperature": 0}
        self._times[number].append([])
        async for when_s in self._bench.stream("/v1/generate", body):
            self._times[number][-1].append(when_s)
            if len(self._times[number]) == len(self._times[number][0]) == 1:
                self._begun.release()

    async def all_run(self) -> None:
        """Until every stream has begun."""
        for _ in self._times:
            await self._begun.acquire()

    def gaps(self, since_s: float) -> list[float]:
        """Seconds between two tokens of a stream, where the later one came after a moment."""
        return [gap for streams in self._times for times in streams for gap in _gaps(times, since_s)]


def _gaps(times: list[float], since_s: float) -> Iterator[float]:
    return (after - before for before, after in pairwise(times) if after > since_s)


async def measure(service: Service, rounds: int, counts: list[int]) -> dict[str, Any]:
    """All of it, and what stands out."""
    async with httpx.AsyncClient(base_url=service.url, timeout=600, limits=httpx.Limits()) as client:
        bench = Bench(service, client)
        questions = [await bench.questions(size, rounds) for size in BOOK_BYTES]
        streams = [await bench.streams(count, rounds) for count in counts]
    return {
        "machine": f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores",
        "load_average": psutil.getloadavg(),
        "questions": [{**each.summary(), **asdict(each)} for each in questions],
        "streams": [{**each.summary(), **asdict(each)} for each in streams],
    }


def main() -> None:
    """Start a service, measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 8])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        service = start_service(Path(folder), "--repository", f"{folder}/repository")
        try:
            found = asyncio.run(measure(service, arguments.rounds, arguments.streams))
        finally:
            stop_service(service)
    for each in (*found["questions"], *found["streams"]):
        plain = {name: value for name, value in each.items() if not isinstance(value, list)}
        print(json.dumps(plain, indent=1), file=sys.stderr)
    if arguments.output:
        rounded = json.loads(json.dumps(found), parse_float=lambda text: round(float(text), 5))
        arguments.output.write_text(json.dumps(rounded, indent=1) + "\n")


if __name__ == "__main__":
    main()
