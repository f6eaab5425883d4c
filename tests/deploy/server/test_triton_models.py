"""The models behind a real Triton give what the same graphs and the same engine give in this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.grpc.aio as grpcclient

from deploy.repository.build import build_repository
from deploy.repository.profiles import Backend
from deploy.server.installation import Installation, find_installation
from deploy.server.launcher import LaunchPlan
from deploy.server.supervisor import Supervisor
from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings
from deploy.triton.manifest import bundle_digest
from deploy.triton.protocol import BatchNews, FinishReason, GenerationBatch, Row, Sampling, Source, Task
from service.errors import InferenceFailed
from service.inference.triton import TritonClient
from tests.deploy.conftest import ONE_THREAD

TOLERANCE = 1e-3
LENGTHS = (1, 2, 15, 16, 17, 33, 64, 100)
"""Around the nano network's blocks of 16, and well past them."""


@pytest.fixture
async def client(triton_url: str) -> AsyncIterator[TritonClient]:
    client = TritonClient(triton_url, timeout_s=5)
    await client.start()
    yield client
    await client.close()


@pytest.fixture(scope="module")
def engine(nano_bundle: Path) -> Engine:
    return Engine(nano_bundle, EngineSettings(threads=1))


def tokens(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(16, 32_000, shape)


def inputs_of(model: str, seed: int, rows: int, size: int) -> dict[str, np.ndarray]:
    """Rows padded to one length, the first of them full."""
    ids = tokens(seed, rows, size)
    lengths = np.random.default_rng(seed).integers(1, size + 1, (rows, 1))
    lengths[0] = size
    ids[np.arange(size) >= lengths] = 0
    return {"input_ids": ids, **({"lengths": lengths.astype(np.int32)} if model == "qa" else {})}


def in_process(bundle: Path, model: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(bundle / "graphs" / f"{model}.onnx", providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, inputs), strict=True))


@pytest.mark.parametrize("model", ["hybrid_lm", "router", "qa"])
async def test_stateless_models_agree_with_their_graphs(client: TritonClient, nano_bundle: Path, model: str) -> None:
    for seed, size in enumerate(LENGTHS):
        inputs = inputs_of(model, seed, 1 + seed % 4, size)
        answer = await client.infer(model, inputs)
        for name, expected in in_process(nano_bundle, model, inputs).items():
            np.testing.assert_allclose(answer[name], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("model", ["hybrid_lm", "router", "qa", "generator"])
async def test_a_model_says_which_bundle_it_serves(triton_url: str, nano_bundle: Path, model: str) -> None:
    async with grpcclient.InferenceServerClient(triton_url) as asked:
        parameters = (await asked.get_model_config(model)).config.parameters
    assert parameters["bundle"].string_value == "trident-nano"
    assert parameters["bundle_sha256"].string_value == bundle_digest(nano_bundle)


@pytest.mark.parametrize("model", ["hybrid_lm", "router", "qa"])
async def test_requests_that_triton_joins_get_their_own_results(
    client: TritonClient, nano_bundle: Path, model: str
) -> None:
    asked = [inputs_of(model, seed, 1, LENGTHS[seed % 3 + 4]) for seed in range(32)]
    answers = await asyncio.gather(*(client.infer(model, inputs) for inputs in asked))
    for inputs, answer in zip(asked, answers, strict=True):
        for name, expected in in_process(nano_bundle, model, inputs).items():
            np.testing.assert_allclose(answer[name], expected, atol=TOLERANCE, rtol=0)


def row(row_id: int, source: np.ndarray) -> Row:
    return Row(row_id=row_id, source=Source(source), sampling=Sampling(max_new_tokens=12, temperature=0))


async def texts(client: TritonClient, task: Task, sources: Sequence[np.ndarray], first: int) -> list[list[int]]:
    """The tokens of one batch, by row."""
    found: dict[int, list[int]] = {}
    rows = tuple(row(first + index, source) for index, source in enumerate(sources))
    async for news, _ in client.generate(GenerationBatch(task=task, rows=rows)):
        for update in news.updates:
            assert update.finish_reason is not FinishReason.ERROR
            found.setdefault(update.row_id, []).extend(update.tokens.tolist())
    return [found[first + index] for index in range(len(sources))]


def engine_texts(engine: Engine, task: Task, sources: Sequence[np.ndarray]) -> list[list[int]]:
    found: dict[int, list[int]] = {}

    def take(news: BatchNews) -> None:
        for update in news.updates:
            found.setdefault(update.row_id, []).extend(update.tokens.tolist())

    for index, source in enumerate(sources):
        engine.submit(GenerationBatch(task=task, rows=(row(index, source),)), take)
        while engine.step():
            pass
    return [found[index] for index in range(len(sources))]


@pytest.mark.parametrize("task", [Task.GENERATION, Task.SUMMARY])
async def test_greedy_texts_are_the_engine_s_alone_and_in_a_batch(
    client: TritonClient, engine: Engine, task: Task
) -> None:
    lengths = np.random.default_rng(0).integers(1, 101, 50)
    sources = [tokens(seed, size) for seed, size in enumerate(lengths)]
    expected = engine_texts(engine, task, sources)
    assert len({tuple(text) for text in expected}) > len(sources) // 2
    assert await texts(client, task, sources, first=1000) == expected
    alone = [await texts(client, task, [source], first=2000 + index) for index, source in enumerate(sources)]
    assert [text for (text,) in alone] == expected


async def test_32_equal_prompts_get_equal_texts(client: TritonClient, engine: Engine) -> None:
    source = tokens(3, 40)
    (expected,) = engine_texts(engine, Task.GENERATION, [source])
    assert len(set(expected)) > 1
    assert await texts(client, Task.GENERATION, [source] * 32, first=3000) == [expected] * 32


async def test_a_bad_token_id_fails_alone(client: TritonClient, nano_bundle: Path) -> None:
    asked = [inputs_of("router", seed, 1, 20) for seed in range(8)]
    asked[3]["input_ids"][0, 5] = 32_000
    answers = await asyncio.gather(*(client.infer("router", inputs) for inputs in asked), return_exceptions=True)
    assert [index for index, answer in enumerate(answers) if isinstance(answer, Exception)] == [3]
    assert isinstance(answers[3], InferenceFailed)
    good, bad = tokens(1, 10), np.append(tokens(2, 10), 32_000)
    good_text, refused = await asyncio.gather(
        texts(client, Task.GENERATION, [good], first=4000),
        texts(client, Task.GENERATION, [bad], first=4001),
        return_exceptions=True,
    )
    assert good_text[0]
    assert "input_ids holds the id 32000" in str(refused)


async def test_the_server_says_who_it_is(client: TritonClient) -> None:
    found = await client.server()
    assert (found.name, found.version) == ("triton", "2.51.0")


@pytest.mark.skipif("TRIDENT_TRITON_BACKENDS" not in os.environ, reason="TRIDENT_TRITON_BACKENDS names no backends")
async def test_the_native_backend_agrees_with_the_graphs(
    installation: Installation, nano_bundle: Path, tmp_path: Path
) -> None:
    server = find_installation(extra_backends=Path(os.environ["TRIDENT_TRITON_BACKENDS"]))
    assert Backend.ONNXRUNTIME in server.backends
    build_repository(nano_bundle, tmp_path / "r", backend=Backend.ONNXRUNTIME, profile=ONE_THREAD)
    with Supervisor(LaunchPlan.temporary(server, tmp_path / "r")) as supervisor:
        supervisor.wait_until_ready()
        client = TritonClient(supervisor.plan.url, timeout_s=5)
        await client.start()
        try:
            for model in ("hybrid_lm", "router", "qa"):
                for seed, size in enumerate(LENGTHS):
                    inputs = inputs_of(model, seed, 1 + seed % 4, size)
                    answer = await client.infer(model, inputs)
                    for name, expected in in_process(nano_bundle, model, inputs).items():
                        np.testing.assert_allclose(answer[name], expected, atol=TOLERANCE, rtol=0)
        finally:
            await client.close()
