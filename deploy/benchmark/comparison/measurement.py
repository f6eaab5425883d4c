"""What is measured of one running server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from deploy.benchmark.comparison.processes import Running
from deploy.benchmark.comparison.questions import Asked
from deploy.benchmark.comparison.search import probe
from deploy.benchmark.questions import SizedQuestions
from deploy.benchmark.replay import at_once, replay
from deploy.benchmark.unbatched import unbatched_s

OVERLOAD = 1.5
CLIENTS = (64, 16, 4)
"""Of the closed loop that finds the throughput at saturation: two full batches, or what a server does not refuse."""

SWEPT_LOADS = (0.4, 0.8)
"""At which a setting is judged: below what good servers keep up with, and near it."""

CHECKED = 6
"""Requests whose answers are compared."""

SCORE_TOLERANCE = 0.01
"""Between float32 and 8-bit weights' activations; the same answer at the same place is what counts."""

Say = Callable[[str], None]


class OtherAnswers(ValueError):
    """A server that answers otherwise than the model does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Effort:
    """How much is run."""

    seconds: float
    """That load 1.0 takes, by which the number of requests is chosen."""

    loads: int
    """Tried in search of the highest one."""

    rounds: int
    sweeps: bool
    """Whether settings are tried; if not, each system's first is taken."""


def run_at(server: Running, asked: Asked, load: float) -> dict[str, Any]:
    """Figures and samples of one load."""
    answers = asyncio.run(replay(server.program.url, asked.at(load)))
    return {**answers.figures(load), "compression": asked.compression(load)}


def saturate(server: Running, asked: Asked) -> float:
    """Answers a second where many clients each ask as soon as they are answered.

    Raises ValueError where even a few of them are not.
    """
    *many, few = CLIENTS
    for clients in many:
        with suppress(ValueError):
            return len(asked.bodies) / asyncio.run(at_once(server.program.url, asked.bodies, clients))
    return len(asked.bodies) / asyncio.run(at_once(server.program.url, asked.bodies, few))


def measure(server: Running, asked: Asked, questions: SizedQuestions, effort: Effort, say: Say) -> dict[str, Any]:
    """Everything of one round: requests alone, saturation, loads up and down, then 1.5."""
    say("saturation")
    alone_s = asyncio.run(unbatched_s(server.program.url, questions, asked.shape.tokens))
    saturation_per_s = saturate(server, asked)
    runs: list[dict[str, Any]] = []

    def attained(load: float) -> float:
        say(f"load {load:g}")
        runs.append(run_at(server, asked, load))
        return float(runs[-1]["attained"])

    probe(attained, effort.loads)
    if OVERLOAD not in [run["load"] for run in runs]:
        attained(OVERLOAD)
    return {
        "capacity_per_s": asked.capacity_per_s,
        "alone_ms": 1e3 * float(np.median(alone_s)),
        "saturation_per_s": saturation_per_s,
        "resident_bytes": server.resident_bytes(),
        "runs": sorted(runs, key=lambda run: run["load"]),
    }


def judge(server: Running, asked: Asked) -> dict[str, float]:
    """What a setting attains at the loads of the sweep, once the server is warm."""
    saturate(server, asked)
    return {f"{load:g}": run_at(server, asked, load)["attained"] for load in SWEPT_LOADS}


def check_answers(server: Running, asked: Asked, expected: list[dict[str, Any]]) -> float:
    """The largest difference in score from the expected answers of the first requests.

    Raises OtherAnswers where an answer is another text or stands elsewhere.
    """
    worst = 0.0
    for body, wanted in zip(asked.bodies, expected, strict=False):
        found = server.ask(json.loads(body))
        places = [[(each["text"], each["start"], each["end"]) for each in one["answers"]] for one in (found, wanted)]
        pairs = zip(found["answers"], wanted["answers"], strict=False)
        worst = max([worst, *(abs(one["score"] - other["score"]) for one, other in pairs)])
        if places[0] != places[1] or worst > SCORE_TOLERANCE:
            raise OtherAnswers(f"{server.program.name} answers {found['answers']} in place of {wanted['answers']}")
    return worst
