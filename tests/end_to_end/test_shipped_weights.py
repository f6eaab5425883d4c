"""The shipped weights give the same answers in PyTorch, in ONNX Runtime and through Triton, alone and together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import numpy as np
import pytest

from deploy.bundle.checkpoints import load_bundle_model
from deploy.bundle.export import export_bundle
from deploy.parity.graph_runner import GraphRunner
from deploy.parity.samples import LIBRARY, LIGHT, RIVER, Sample, Source, encode_samples
from deploy.parity.torch_runner import TorchRunner
from deploy.repository.build import build_repository
from deploy.repository.profiles import PROFILES, Backend, ProfileName
from deploy.server.installation import find_installation
from deploy.server.launcher import LaunchPlan
from deploy.server.supervisor import Supervisor
from deploy.triton.protocol import GenerationBatch, Row, Sampling, Task
from deploy.triton.protocol import Source as RowSource
from model.tokenizer import SPECIAL_TOKENS
from service.inference.triton import TritonClient
from tests.end_to_end.conftest import SHIPPED_BUNDLE

TOLERANCE = 1e-3
NEW_TOKENS = 24
QUESTIONS = ("When was the bridge built?", "Where does the river rise?", "Why was the library closed?", "比邻星有多远?")
TEXT = f"{RIVER} {LIBRARY} {LIGHT} "


def inputs() -> list[Sample]:
    """50 inputs, 1 to about 600 tokens long."""
    cuts = np.geomspace(3, 3 * len(TEXT), 17).astype(int)
    long = TEXT * 4
    prompts = [Sample(task="generation", input=long[index : index + cut]) for index, cut in enumerate(cuts)]
    texts = [
        Sample(task="summary", input=long[37 * index : 37 * index + cut])
        for index, cut in enumerate(np.geomspace(80, 3 * len(TEXT), 17).astype(int))
    ]
    asked = [
        Sample(task="qa", input=QUESTIONS[index % 4], context=long[index : index + cut + 40])
        for index, cut in enumerate(cuts[:16])
    ]
    return [*prompts, *texts, *asked]


@dataclass(frozen=True, kw_only=True)
class Exact:
    """The shipped network in float32: in PyTorch, as graphs, and behind Triton."""

    network: TorchRunner
    graphs: GraphRunner
    triton_url: str
    sources: list[Source]

    def text(self, kind: str, source: Source) -> list[int]:
        """What the network writes, alone."""
        return self.network.greedy(kind, *padded([source]), NEW_TOKENS)[0]

    def of(self, task: str) -> list[Source]:
        """The inputs of one task."""
        return [source for source in self.sources if source.task == task]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exact]:
    folder = tmp_path_factory.mktemp("float32")
    model = load_bundle_model(SHIPPED_BUNDLE)
    export_bundle(model, SHIPPED_BUNDLE, folder / "bundle", precision="fp32")
    build_repository(
        folder / "bundle", folder / "repository", backend=Backend.PYTHON, profile=PROFILES[ProfileName.CPU]
    )
    plan = LaunchPlan.temporary(find_installation(), folder / "repository")
    with Supervisor(plan) as supervisor:
        supervisor.wait_until_ready()
        sources = encode_samples(SHIPPED_BUNDLE, inputs(), limit=model.config.max_positions)
        yield Exact(
            network=TorchRunner(model),
            graphs=GraphRunner(folder / "bundle" / "graphs"),
            triton_url=plan.url,
            sources=sources,
        )


@pytest.fixture
async def triton(exact: Exact) -> AsyncIterator[TritonClient]:
    client = TritonClient(exact.triton_url, timeout_s=5)
    await client.start()
    yield client
    await client.close()


def padded(sources: Sequence[Source]) -> tuple[np.ndarray, np.ndarray]:
    lengths_B = np.array([len(source.ids) for source in sources])
    ids_BS = np.zeros((len(sources), lengths_B.max()), np.int64)
    for row, source in zip(ids_BS, sources, strict=True):
        row[: len(source.ids)] = source.ids
    return ids_BS, lengths_B


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_logits_agree_within_a_thousandth(exact: Exact, triton: TritonClient) -> None:
    assert len(exact.sources) == 50
    for source in exact.sources:
        expected = exact.network.lm_logits(source.ids[None])
        np.testing.assert_allclose(exact.graphs.lm_logits(source.ids[None]), expected, atol=TOLERANCE, rtol=0)
        answer = await triton.infer("hybrid_lm", {"input_ids": source.ids[None]})
        np.testing.assert_allclose(answer["logits"], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("task", "kind"), [("generation", "generative"), ("summary", "pointer")])
async def test_greedy_texts_are_identical(exact: Exact, triton: TritonClient, task: str, kind: str) -> None:
    sources = exact.of(task)
    # The engine never writes a special token; the bare network may copy the task's from a source of a few letters.
    plain = [not any(token < len(SPECIAL_TOKENS) for token in exact.text(kind, source)) for source in sources]
    assert sum(plain) >= len(sources) - 2
    sources = [source for source, keep in zip(sources, plain, strict=True) if keep]
    alone = [padded([source]) for source in sources]
    expected = [exact.text(kind, source) for source in sources]
    assert len({tuple(text) for text in expected}) > len(expected) // 2, "texts that do not vary prove nothing"
    assert exact.network.greedy(kind, *padded(sources), NEW_TOKENS) == expected
    assert [exact.graphs.greedy(kind, *each, NEW_TOKENS)[0] for each in alone] == expected
    assert exact.graphs.greedy(kind, *padded(sources), NEW_TOKENS) == expected
    assert await triton_texts(triton, Task[task.upper()], sources, first_id=0) == expected
    for index, source in enumerate(sources):
        assert await triton_texts(triton, Task[task.upper()], [source], first_id=1000 + index) == [expected[index]]


async def triton_texts(client: TritonClient, task: Task, sources: Sequence[Source], first_id: int) -> list[list[int]]:
    sampling = Sampling(max_new_tokens=NEW_TOKENS, temperature=0)
    rows = tuple(
        Row(row_id=first_id + i, source=RowSource(each.ids), sampling=sampling) for i, each in enumerate(sources)
    )
    found: dict[int, list[int]] = {row.row_id: [] for row in rows}
    async for news, _ in client.generate(GenerationBatch(task=task, rows=rows)):
        for update in news.updates:
            found[update.row_id] += update.tokens.tolist()
    return list(found.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_answer_spans_are_identical(exact: Exact, triton: TritonClient) -> None:
    sources = exact.of("qa")
    ids_BS, lengths_B = padded(sources)
    expected = [
        exact.network.best_span(exact.network.emissions(*padded([source]))[0], source.context) for source in sources
    ]
    assert len(set(expected)) > len(expected) // 3, "spans that do not vary prove nothing"
    answer = await triton.infer("qa", {"input_ids": ids_BS, "lengths": lengths_B.astype(np.int32)[:, None]})
    for emissions_BS3 in (exact.graphs.emissions(ids_BS, lengths_B), answer["emissions"]):
        rows = [row[:length] for row, length in zip(emissions_BS3, lengths_B, strict=True)]
        found = [exact.network.best_span(row, source.context) for row, source in zip(rows, sources, strict=True)]
        assert found == expected


def test_int8_texts_are_identical_alone_and_among_32(client: httpx.Client) -> None:
    prompts = [f"{TEXT[7 * index : 7 * index + 20 + 11 * index]}" for index in range(32)]

    def text(prompt: str) -> str:
        response = client.post("/v1/generate", json={"prompt": prompt, "max_new_tokens": 24, "temperature": 0})
        assert response.status_code == 200, response.text
        return response.json()["text"]

    alone = [text(prompt) for prompt in prompts]
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(text, prompts)) == alone
    assert len(set(alone)) > 16
