"""Peers are started, driven and stopped."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from deploy.benchmark.comparison.measurement import Effort, OtherAnswers, check_answers, measure
from deploy.benchmark.comparison.processes import PeerFailed, Program, running
from deploy.benchmark.comparison.questions import Asked, Shape
from deploy.benchmark.questions import sized_questions
from deploy.server.launcher import free_ports
from service.settings import PRETRAINED

SMALL_PEER = Path(__file__).with_name("small_peer.py")
QUESTIONS = sized_questions(PRETRAINED)
ANSWER = {"answers": [{"text": "Elias Berg", "start": 36, "end": 46, "score": 0.9}], "no_answer_score": 0.1}


def small_peer(folder: Path, *arguments: str) -> Program:
    (port,) = free_ports(1)
    command = [sys.executable, str(SMALL_PEER), str(port), *arguments]
    return Program(name="Small", command=command, variables={}, port=port, log=folder / "small.log")


def asked(requests: int = 20) -> Asked:
    """Requests that a server of any speed answers in time."""
    tokens = np.full(requests, 20)
    shape = Shape(source="drawn", offsets_s=np.linspace(0, 1, requests), tokens=tokens)
    return Asked(
        shape=shape,
        bodies=QUESTIONS.bodies(tokens),
        patience_s=np.full(requests, 60.0),
        work_s=np.full(requests, 0.0025),
    )


def test_a_peer_is_started_driven_and_stopped_with_its_workers(tmp_path: Path) -> None:
    with running(small_peer(tmp_path), timeout_s=30) as server:
        (worker,) = server.process.children()
        measured = measure(
            server, asked(), QUESTIONS, Effort(seconds=1, loads=2, rounds=1, sweeps=False), lambda _: None
        )
        assert server.resident_bytes() > server.process.memory_info().rss
    assert not server.process.is_running()
    assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    assert measured["saturation_per_s"] > 0
    assert [run["load"] for run in measured["runs"]] == [0.5, 1.0, 1.5]
    for run in measured["runs"]:
        assert run["attained"] == 1.0
        assert run["status"] == [200] * 20
        assert len(run["ms"]) == 20


def test_a_peer_that_ends_is_told_with_the_end_of_its_log(tmp_path: Path) -> None:
    with (
        pytest.raises(PeerFailed, match=r"Small ended with status 3.*\n.*the model does not load"),
        running(small_peer(tmp_path, "3"), timeout_s=30),
    ):
        pass


def test_a_peer_that_nobody_hears_of_is_given_up_and_ended(tmp_path: Path) -> None:
    silent = Program(
        name="Silent",
        command=[sys.executable, "-c", "import signal; signal.pause()"],
        variables={},
        port=free_ports(1)[0],
        log=tmp_path / "silent.log",
    )
    with pytest.raises(PeerFailed, match=r"Silent did not answer within 0\.3 s"), running(silent, timeout_s=0.3):
        pass
    assert not any(each.cmdline()[-1:] == ["import signal; signal.pause()"] for each in psutil.Process().children())


def test_answers_of_other_words_or_places_are_not_the_models(tmp_path: Path) -> None:
    moved = {**ANSWER, "answers": [{**ANSWER["answers"][0], "start": 37}]}  # type: ignore[dict-item,index]
    surer = {**ANSWER, "answers": [{**ANSWER["answers"][0], "score": 0.8}]}  # type: ignore[dict-item,index]
    with running(small_peer(tmp_path), timeout_s=30) as server:
        assert check_answers(server, asked(), [ANSWER, ANSWER]) == 0.0
        for other in (moved, surer):
            with pytest.raises(OtherAnswers, match="Small answers"):
                check_answers(server, asked(), [ANSWER, other])
