"""Peers that run in this environment answer as the model does, behind real sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from deploy.benchmark.comparison.processes import running
from deploy.benchmark.comparison.systems import SERVERS, TRIDENT, choose
from deploy.benchmark.peers.options import PeerOptions
from deploy.benchmark.peers.reading import QuestionReader
from deploy.benchmark.peers.triton_dynamic import write_repository
from deploy.benchmark.peers.window_model import WindowModel
from deploy.server.installation import Installation
from deploy.server.launcher import free_ports

CONTEXT = "The lighthouse was built in 1871 by Elias Berg, a mason from the village below."
SHORT = {"question": "Who built it?", "context": CONTEXT}
OF_MANY_WINDOWS = {"question": "When was it built?", "context": " ".join([CONTEXT] * 60)}


def answer(bundle: Path, body: Mapping[str, str]) -> dict:
    """What graph and gateway's code say, without a server."""
    reader = QuestionReader(bundle)
    question = asyncio.run(reader.read(**body))
    return reader.answer(question, WindowModel(bundle)(question.windows))


def assert_same(found: dict, expected: dict) -> None:
    places = [[(each["text"], each["start"], each["end"]) for each in one["answers"]] for one in (found, expected)]
    assert places[0] == places[1]
    scores = [[each["score"] for each in one["answers"]] for one in (found, expected)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-4)
    assert found["no_answer_score"] == pytest.approx(expected["no_answer_score"], abs=1e-4)


IN_PROCESS = replace(TRIDENT, arguments=(*TRIDENT.arguments, "--runtime", "local"))
"""Trident itself, without a model repository in the project's folder."""


@pytest.mark.parametrize(
    "key",
    [
        "fastapi-onnxruntime",
        pytest.param(IN_PROCESS.key, marks=pytest.mark.slow),
        pytest.param("triton-dynamic", marks=pytest.mark.slow),
    ],
)
def test_a_peer_answers_as_the_model_does(
    key: str, nano_bundle: Path, tmp_path: Path, installation: Installation
) -> None:
    (system,) = choose(key, [IN_PROCESS, *SERVERS[1:]])
    (port,) = free_ports(1)
    with running(system.program(nano_bundle, port, system.settings[0], tmp_path), timeout_s=120) as server:
        for body in (SHORT, OF_MANY_WINDOWS):
            assert_same(server.ask(body), answer(nano_bundle, body))


def test_windows_of_any_length_run_together_as_they_do_alone(nano_bundle: Path) -> None:
    model = WindowModel(nano_bundle)
    windows = [np.arange(16, 16 + size) for size in (3, 90, 40)]
    for together, window in zip(model(windows), windows, strict=True):
        (alone,) = model([window])
        assert together.shape == (len(window), 3)
        np.testing.assert_allclose(together, alone, atol=1e-4)


def test_tritons_batcher_gets_the_settings_and_may_mix_lengths(nano_bundle: Path, tmp_path: Path) -> None:
    options = PeerOptions(bundle=nano_bundle, max_batch_size=8, delay_ms=2.5)
    write_repository(options, tmp_path / "repository")
    assert [each.name for each in (tmp_path / "repository").iterdir() if each.is_dir()] == ["qa"]
    text = (tmp_path / "repository" / "qa" / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert config.max_batch_size == 8
    assert config.dynamic_batching.max_queue_delay_microseconds == 2500
    assert all(each.allow_ragged_batch for each in config.input)


def test_a_decoder_is_timed_on_as_many_tokens_as_were_asked_for(
    nano_bundle: Path, capsys: pytest.CaptureFixture
) -> None:
    from deploy.benchmark.peers.decoding import measure
    from deploy.benchmark.peers.options import DecodingOptions

    options = DecodingOptions(bundle=nano_bundle, rows=(1, 3), source_tokens=8, new_tokens=4, repeats=2)
    measure(lambda sources_BS, tokens: len(sources_BS) * tokens, options)
    printed = json.loads(capsys.readouterr().out)
    assert [run["rows"] for run in printed["runs"]] == [1, 3]
    assert all(len(run["first_s"]) == len(run["whole_s"]) == 2 for run in printed["runs"])
    with pytest.raises(ValueError, match="3 tokens were written in place of 1 × 4"):
        measure(lambda sources_BS, tokens: len(sources_BS) * min(tokens, 3), options)
