"""The load driver: what it sends, when, and what it makes of answers."""

from __future__ import annotations

import json
import threading
import time
from typing import ClassVar

import numpy as np
import pytest
from tokenizers import Tokenizer

from deploy.benchmark.questions import sized_questions
from deploy.benchmark.replay import DEADLINE_HEADER, Schedule, at_once, one_by_one, replay
from deploy.benchmark.unbatched import unbatched_s
from service.settings import PRETRAINED
from tests.small_service import SmallService, serving

QUESTIONS = sized_questions(PRETRAINED)


PATIENT_S = 60.0


class Scripted(SmallService):
    """Answers with the status that the body names: after some seconds, or when so many requests are there."""

    protocol_version = "HTTP/1.1"
    deadlines_ms: ClassVar[list[int]] = []
    at_once: ClassVar[int] = 0
    most_at_once: ClassVar[int] = 0
    lock: ClassVar[threading.Lock] = threading.Lock()
    together: ClassVar[threading.Barrier | None] = None

    def post(self, body: bytes) -> None:
        cls = type(self)
        with cls.lock:
            cls.deadlines_ms.append(int(self.headers.get(DEADLINE_HEADER, 0)))
            cls.at_once += 1
            cls.most_at_once = max(cls.most_at_once, cls.at_once)
        wanted = json.loads(body)
        time.sleep(wanted["seconds"])
        if cls.together is not None:
            cls.together.wait(PATIENT_S)
        with cls.lock:
            cls.at_once -= 1
        self.reply(b"{}", wanted["status"])


@pytest.fixture
def server() -> type[Scripted]:
    return type("Fresh", (Scripted,), {"deadlines_ms": [], "at_once": 0, "most_at_once": 0})


def wanted(status: int, seconds: float = 0.0) -> bytes:
    return json.dumps({"status": status, "seconds": seconds}).encode()


@pytest.mark.parametrize("tokens", [7, 8, 63, 200, 384])
def test_a_question_has_the_tokens_that_were_asked_for(tokens: int) -> None:
    tokenizer = Tokenizer.from_file(str(PRETRAINED / "tokenizer.json"))
    body = json.loads(QUESTIONS.body(tokens, number=5))
    sizes = [len(tokenizer.encode(body[name], add_special_tokens=False).ids) for name in ("question", "context")]
    assert 2 + sum(sizes) == tokens


def test_lengths_that_no_source_has_are_fitted_or_refused() -> None:
    assert QUESTIONS.fitted(np.array([1, 100, 5000]), cap=512).tolist() == [QUESTIONS.shortest, 100, 384]
    with pytest.raises(ValueError, match="a source has 7 to 384 tokens, not 385"):
        QUESTIONS.body(385)


async def test_answers_are_told_apart_by_status_and_by_deadline(server: type[Scripted]) -> None:
    bodies = [wanted(200), wanted(200, 0.3), wanted(504), wanted(429), wanted(500)]
    patience_s = np.array([PATIENT_S, 0.1, *[PATIENT_S] * 3])
    schedule = Schedule(arrivals_s=np.zeros(5), patience_s=patience_s, bodies=bodies)
    with serving(server) as url:
        answers = await replay(url, schedule)
    assert answers.in_time.tolist() == [True, False, False, False, False]
    assert answers.late.tolist() == [False, True, True, False, False]
    assert answers.rejected.tolist() == [False, False, False, True, False]
    assert answers.failed.tolist() == [False, False, False, False, True]
    assert sorted(server.deadlines_ms) == [100, *[60_000] * 4]


async def test_nothing_that_answers_is_a_failure_and_ends_nothing() -> None:
    schedule = Schedule(arrivals_s=np.zeros(2), patience_s=np.ones(2), bodies=[wanted(200)] * 2)
    answers = await replay("http://127.0.0.1:1", schedule)
    assert answers.failed.all()


async def test_requests_leave_at_their_times_and_wait_for_no_answer(server: type[Scripted]) -> None:
    """None is answered until all are there."""
    server.together = threading.Barrier(5)
    arrivals_s = np.linspace(0, 0.2, 5)
    schedule = Schedule(arrivals_s=arrivals_s, patience_s=np.full(5, PATIENT_S), bodies=[wanted(200)] * 5)
    with serving(server) as url:
        answers = await replay(url, schedule)
    assert answers.in_time.all()
    assert (answers.held_up_s >= 0).all()
    assert (answers.seconds >= 0.2 - arrivals_s).all()


async def test_clients_of_a_closed_loop_have_one_request_each(server: type[Scripted]) -> None:
    server.together = threading.Barrier(2)
    with serving(server) as url:
        seconds = await at_once(url, [wanted(200, 0.05)] * 8, clients=2)
    assert server.most_at_once == 2
    assert seconds >= 4 * 0.05


async def test_a_request_alone_waits_for_no_other(server: type[Scripted]) -> None:
    with serving(server) as url:
        seconds = await one_by_one(url, [wanted(200, 0.05)] * 3)
        assert server.most_at_once == 1
        with pytest.raises(ValueError, match=r"answers 503: \{\}"):
            await one_by_one(url, [wanted(503)])
        with pytest.raises(ValueError, match="answers 503"):
            await at_once(url, [wanted(503)] * 4, clients=2)
    assert (seconds >= 0.05).all()


class ByLength(SmallService):
    """Takes a millisecond for ten words."""

    protocol_version = "HTTP/1.1"

    def post(self, body: bytes) -> None:
        time.sleep(1e-4 * len(json.loads(body)["context"].split()))
        self.reply(b"{}")


async def test_unbatched_times_grow_with_length_and_are_measured_on_the_server() -> None:
    tokens = np.array([300, 10, 384, 150])
    with serving(ByLength) as url:
        seconds = await unbatched_s(url, QUESTIONS, tokens)
    assert seconds[[1, 3, 0, 2]].tolist() == sorted(seconds.tolist())
    assert (seconds >= 1e-4 * (tokens - 6) - 1e-6).all()
