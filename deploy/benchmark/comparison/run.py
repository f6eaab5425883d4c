"""The whole comparison:

    load 1.0 of raw ONNX Runtime ─▶ deadlines from what requests take alone through Trident
        ─▶ each system's settings, tried for seconds ─▶ rounds: each system in turn, each started anew

Every file of results is written again after each measurement, so that what was measured outlives an interruption.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deploy.benchmark.capacity import RawModel
from deploy.benchmark.comparison.environments import versions
from deploy.benchmark.comparison.measurement import CHECKED, Effort, Say, check_answers, judge, measure
from deploy.benchmark.comparison.processes import Running, running
from deploy.benchmark.comparison.questions import Asked, Shape, patience_s
from deploy.benchmark.comparison.systems import TRIDENT, Setting, System
from deploy.benchmark.load import processor
from deploy.benchmark.peers.reading import QuestionReader
from deploy.benchmark.peers.window_model import WindowModel
from deploy.benchmark.questions import SizedQuestions
from deploy.benchmark.unbatched import unbatched_s
from deploy.bundle.replacement import write_text
from deploy.server.installation import ROOT
from deploy.server.launcher import free_ports

ROWS = 32
"""Of the sorted batches that load 1.0 is made of."""

RAW_REPEATS = 3
TRIED = 64
"""Requests by which their number is chosen."""

FEWEST = 40
SWEEP_SHARE = 0.3
"""Of the requests, for trying settings."""

DECODING_TIMEOUT_S = 1800


@dataclass(kw_only=True, slots=True)
class Comparison:
    """Servers under the same questions, and decoders."""

    bundle: Path
    shape: Shape
    questions: SizedQuestions
    effort: Effort
    decoding: Mapping[str, str]
    """Environment variables of the decoders."""

    output: Path
    """Folder of the results, one file a system."""

    logs: Path
    """Folder of what servers print."""

    say: Say
    chosen: Mapping[str, Setting] = field(default_factory=dict)
    """By key: settings that an earlier comparison found best, for systems whose settings are not tried now."""

    requests: int | None = None
    """How many of the shape's are sent at every load; None chooses by their speed here."""

    results: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)
    failures: list[str] = field(init=False, default_factory=list)
    """Systems that did not start, or answered otherwise: the others are measured all the same."""

    def servers(self, systems: Sequence[System]) -> None:
        """Measure servers, and write what was seen."""
        asked, expected = self._asked(), self._expected()
        for system in systems:
            self.results[system.key] = self._beginning(system)
            if self.effort.sweeps and len(system.settings) > 1:
                self._try(system, partial(self._sweep, system, asked))
        for number in range(self.effort.rounds):
            # What else the machine does changes over an hour: load 1.0 and deadlines are of the same minutes.
            asked = asked if number == 0 else self._asked()
            for system in systems:
                self.say(f"round {number + 1}: {system.name}")
                self._try(system, partial(self._round, system, asked, expected))

    def decoders(self, systems: Sequence[System]) -> None:
        """Measure decoders, and write what was seen."""
        for system in systems:
            self.results[system.key] = self._beginning(system)
        for number in range(self.effort.rounds):
            for system in systems:
                self.say(f"round {number + 1}: {system.name}")
                self._try(system, partial(self._decode, system))

    def _beginning(self, system: System) -> dict[str, Any]:
        return {
            "what": "peers",
            "key": system.key,
            "name": system.name,
            "setting": dict(self.chosen.get(system.key, system.settings[0])),
            "versions": versions(system.python, system.packages),
            "machine": processor(),
            "workload": {
                "source": self.shape.source,
                "requests": self.requests,
                "tokens_mean": float(self.shape.tokens[: self.requests].mean()),
                "tokens_max": int(self.shape.tokens[: self.requests].max()),
            },
            "sweep": [],
            "rounds": [],
        }

    def _try(self, system: System, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            # Frameworks fail in ways of their own; the other systems are measured all the same.
            self.say(f"{system.name}: {error}")
            self.failures.append(system.name)
        self._write(system)

    def _asked(self) -> Asked:
        self.say("load 1.0, and what requests take alone")
        raw = RawModel(self.bundle)
        if self.requests is None:
            share_s = float(raw.shares_s(self.shape.tokens[:TRIED], ROWS).mean())
            self.requests = max(FEWEST, round(self.effort.seconds / share_s))
        shape = self.shape.first(self.requests)
        work_s = np.median([raw.shares_s(shape.tokens, ROWS) for _ in range(RAW_REPEATS)], axis=0)
        with self._started(TRIDENT, TRIDENT.settings[0]) as server:
            alone_s = asyncio.run(unbatched_s(server.program.url, self.questions, shape.tokens))
        bodies = self.questions.bodies(shape.tokens)
        return Asked(shape=shape, bodies=bodies, patience_s=patience_s(alone_s), work_s=work_s)

    def _expected(self) -> list[dict[str, Any]]:
        """Answers of the graph and the gateway's code, without any server."""
        reader, model = QuestionReader(self.bundle), WindowModel(self.bundle)

        async def answer(body: bytes) -> dict[str, Any]:
            question = await reader.read(**json.loads(body))
            return reader.answer(question, model(question.windows))

        return [asyncio.run(answer(body)) for body in self.questions.bodies(self.shape.tokens[:CHECKED])]

    def _started(self, system: System, setting: Setting) -> AbstractContextManager[Running]:
        (port,) = free_ports(1)
        return running(system.program(self.bundle, port, setting, self.logs), system.start_timeout_s)

    def _sweep(self, system: System, asked: Asked) -> None:
        result = self.results[system.key]
        short = asked.first(max(FEWEST, round(SWEEP_SHARE * len(asked.bodies))))
        for setting in system.settings:
            self.say(f"{system.name}, {', '.join(f'{name}={value}' for name, value in setting.items())}")
            with self._started(system, setting) as server:
                result["sweep"].append({"setting": dict(setting), "attained": judge(server, short)})
        result["setting"] = max(result["sweep"], key=lambda tried: sum(tried["attained"].values()))["setting"]

    def _round(self, system: System, asked: Asked, expected: list[dict[str, Any]]) -> None:
        result = self.results[system.key]
        with self._started(system, result["setting"]) as server:
            difference = check_answers(server, asked, expected)
            measured = measure(server, asked, self.questions, self.effort, lambda what: self.say(f"  {what}"))
        result["rounds"].append({"score_difference": difference, **measured})

    def _decode(self, system: System) -> None:
        done = subprocess.run(
            [system.python, *system.arguments],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, **system.variables, **self.decoding},
            timeout=DECODING_TIMEOUT_S,
        )
        if done.returncode:
            raise ValueError(f"{system.name} failed: {done.stderr.strip()[-1000:]}")
        self.results[system.key]["rounds"].append(json.loads(done.stdout.splitlines()[-1]))

    def _write(self, system: System) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        write_text(self.output / f"{system.key}.json", json.dumps(self.results[system.key]) + "\n")
