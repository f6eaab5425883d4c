"""Mixed load with clients that leave midway: nothing fails, nothing leaks."""

from __future__ import annotations

import asyncio
import random

import httpx
import psutil

from tests.end_to_end.conftest import Service
from tests.end_to_end.test_tasks import CONTEXT

REQUESTS = 200
CONCURRENCY = 32


def body(index: int) -> tuple[str, dict]:
    """The index-th request of the mix: two streams of text, a question, a summary, a routed input."""
    length = 4 + index % 29
    return [
        ("/v1/generate", {"prompt": CONTEXT[: 40 + index], "max_new_tokens": length, "stream": True, "seed": index}),
        ("/v1/qa", {"question": "Who built the lighthouse?", "context": CONTEXT * (1 + index % 7)}),
        ("/v1/summarize", {"text": CONTEXT, "max_new_tokens": length, "num_beams": 1 + index % 3}),
        ("/v1/infer", {"input": CONTEXT[:100], "task": "auto"}),
        ("/v1/generate", {"prompt": f"Number {index}", "max_new_tokens": length, "temperature": 0}),
    ][index % 5]


async def send(client: httpx.AsyncClient, index: int, gate: asyncio.Semaphore) -> None:
    path, json = body(index)
    async with gate, client.stream("POST", path, json=json) as response:
        assert response.status_code == 200, await response.aread()
        async for _ in response.aiter_bytes():
            if index % 3 == 0:
                return  # Leaves midway; the connection is closed with the answer unread.


async def cancelled(client: httpx.AsyncClient, index: int, gate: asyncio.Semaphore) -> None:
    """Like send, but a third of the clients give up before the answer begins."""
    if index % 3:
        await send(client, index, gate)
        return
    try:
        await asyncio.wait_for(send(client, index, gate), timeout=random.Random(index).uniform(0.05, 1.0))
    except TimeoutError:
        return


def resident_bytes(service: Service) -> int:
    """Memory of the gateway, Triton and its model processes."""
    root = psutil.Process(service.process.pid)
    return sum(process.memory_info().rss for process in [root, *root.children(recursive=True)])


def test_an_idle_service_keeps_to_its_memory(own_service: Service) -> None:
    gateway = psutil.Process(own_service.process.pid).memory_info().rss
    assert gateway <= 200e6
    assert resident_bytes(own_service) - gateway <= 1.5e9


async def run_load(url: str) -> None:
    gate = asyncio.Semaphore(CONCURRENCY)
    # What is left behind counts here, not how long a busy machine takes.
    patient = httpx.AsyncClient(base_url=url, timeout=300, headers={"X-Request-Timeout-Ms": "300000"})
    async with patient as client, asyncio.TaskGroup() as group:
        for index in range(REQUESTS):
            group.create_task(cancelled(client, index, gate))


async def test_200_mixed_requests_a_third_cancelled_leave_nothing_behind(service: Service) -> None:
    # Once through, so that every shape's buffers exist; then what one more round leaves behind is a leak.
    await run_load(service.url)
    service.wait_until(service.is_idle, "an idle engine after the first round")
    before = resident_bytes(service)
    await run_load(service.url)
    service.wait_until(service.is_idle, "an idle engine after the second round")
    assert resident_bytes(service) <= before * 1.05
    assert service.gauge("trident_num_requests_waiting") == 0
