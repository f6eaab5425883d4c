"""`trident bench policies --url`: a trace's requests through running services, and the same ones simulated beside them.

raw ONNX Runtime ─▶ load 1.0
each service     ─▶ what batches cost, what requests take alone (deadlines), what it takes beside the model ─▶ costs
each load        ─▶ each service in turn: replayed over sockets, then simulated with the same arrivals and deadlines
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from deploy.benchmark.arrivals import Recorded, read_trace
from deploy.benchmark.capacity import RawModel
from deploy.benchmark.costs import WINDOW_SHAPES, time_shapes
from deploy.benchmark.load import surroundings
from deploy.benchmark.questions import SizedQuestions, sized_questions
from deploy.benchmark.replay import Answers, Schedule, replay
from deploy.bundle.replacement import write_text
from deploy.commands.live_service import Known, LiveService, know
from deploy.commands.policies import fitted, numbers
from deploy.triton.manifest import load_manifest
from service.batching.latency import BatchTime
from service.batching.policies import make_policy
from service.batching.simulation.replay import Outcome, Replay
from service.batching.simulation.requests import Requests, offsets_of, timed
from service.served import window_limits
from service.settings import BatchingSettings, read_settings

ROWS = 32
"""Of the sorted batches that load 1.0 is made of."""

RAW_REPEATS = 3
SERVED_POLICIES = get_args(BatchingSettings.model_fields["policy"].annotation)
SAMPLES = ("status", "ms")
OF_SIMULATION = ("batches", "decision_us")
"""Figures that only a simulation has."""


@dataclass(kw_only=True, slots=True, eq=False)
class LiveComparison:
    """What is replayed."""

    recorded: Recorded
    """With lengths that sources can have."""

    questions: SizedQuestions
    services: Sequence[LiveService]
    loads: Sequence[float]
    arrivals: str
    seed: int
    bundle: Path
    knobs: BatchingSettings
    """That the services were started with, the policy aside."""

    trace: str
    measured: dict[str, Any] = field(init=False, default_factory=dict)
    """Costs and times, for whoever reads the figures."""

    @property
    def runs(self) -> int:
        """How many there will be, the measuring before them included."""
        return 1 + len(self.services) * (1 + len(self.loads))

    def run(self, told: Callable[[str], None]) -> Iterator[dict[str, Any] | None]:
        """Figures of every service at every load, None for what was measured first; `told` what is next.

        Raises ValueError where a service does not answer.
        """
        tokens = self.recorded.source_tokens
        told("raw ONNX Runtime")
        raw = RawModel(self.bundle)
        work_s = np.median([raw.shares_s(tokens, ROWS) for _ in range(RAW_REPEATS)], axis=0)
        self.measured = {"capacity_per_s": len(tokens) / work_s.sum()}
        yield None
        known = []
        for service in self.services:
            told(f"{service.policy} alone")
            # Of the same minute as what is held against them.
            costs = fitted(time_shapes(raw, WINDOW_SHAPES))
            known.append(know(service, self.questions, tokens, costs))
            self.measured[service.policy] = {"costs": list(costs.coefficients), **asdict(known[-1].beside)}
            yield None
        offsets = offsets_of(self.arrivals, self.recorded.offsets_s, np.random.default_rng(self.seed))
        bodies = self.questions.bodies(tokens)
        for load in self.loads:
            for each in known:
                told(f"{each.service.policy} at {load:g}")
                requests = timed(load, tokens, offsets, work_s, each.alone_s)
                yield self._compare(each, requests, load, bodies)

    def record(self, figures: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """What is kept of it: settings, machine, versions, figures, and every sample."""
        tokens = self.recorded.source_tokens
        return {
            "what": "policies",
            "settings": {
                "trace": self.trace,
                "requests": len(tokens),
                "costs": "real",
                "arrivals": self.arrivals,
                "without": [],
                "tokens_mean": float(tokens.mean()),
                "tokens_max": int(tokens.max()),
                "seed": self.seed,
            },
            **surroundings(),
            "load_average": list(os.getloadavg()),
            "measured": self.measured,
            "figures": list(figures),
        }

    def _compare(self, known: Known, requests: Requests, load: float, bodies: Sequence[bytes]) -> dict[str, Any]:
        schedule = Schedule(
            arrivals_s=requests.arrivals_s, patience_s=requests.deadlines_s - requests.arrivals_s, bodies=bodies
        )
        answers = asyncio.run(replay(known.service.url, schedule))
        simulated = Replay(
            requests=requests,
            costs=known.costs,
            policy=make_policy(self.knobs.model_copy(update={"policy": known.service.policy})),
            latency=BatchTime(),
            limits=window_limits(self.knobs, load_manifest(self.bundle, verify=False)),
            jitter=known.beside.jitter,
            seed=self.seed,
        ).run()
        found = {"policy": known.service.policy, **_seen(answers, requests, load)}
        beside = _shares(simulated, requests, load)
        return {
            **found,
            "compression": float(self.recorded.offsets_s[-1] / requests.arrivals_s[-1]),
            "simulated": beside,
            "difference": found["attained"] - beside["attained"],
        }


def _shares(outcome: Outcome, requests: Requests, load: float) -> dict[str, Any]:
    figures = outcome.figures(requests, load)
    return {name: value for name, value in figures.items() if name not in OF_SIMULATION}


def _seen(answers: Answers, requests: Requests, load: float) -> dict[str, Any]:
    """Figures and samples of a replay."""
    outcome = Outcome(
        in_time=answers.in_time,
        late=answers.late,
        rejected=answers.rejected,
        waited_s=np.full(len(requests), np.nan),
    )
    return {**answers.figures(load), **_shares(outcome, requests, load)}


def services_of(urls: Sequence[str]) -> list[LiveService]:
    """Services from `POLICY=URL`, or `URL` of the default policy. Raises ValueError for an unknown policy."""
    services = []
    for given in urls:
        policy, _, url = given.rpartition("=") if "=" in given.partition("://")[0] else ("predictive", "", given)
        if policy not in SERVED_POLICIES:
            raise ValueError(f"--url {given}: there is no policy {policy!r}: choose among {', '.join(SERVED_POLICIES)}")
        services.append(LiveService(policy=policy, url=url.rstrip("/")))
    return services


def table(figures: Sequence[dict[str, Any]]) -> Table:
    """Figures for people."""
    shown = Table(box=None, pad_edge=False)
    shares = ("goodput", "rejected", "late", "failed")
    for title in ("policy", "load", "attained", "simulated", "points", *shares, "p50 / p99 ms"):
        shown.add_column(title, justify="left" if title == "policy" else "right")
    for each in figures:
        times = ("–" if each[name] is None else f"{each[name]:.0f}" for name in ("latency_ms_p50", "latency_ms_p99"))
        shown.add_row(
            each["policy"],
            f"{each['load']:g}",
            f"{each['attained']:.3f}",
            f"{each['simulated']['attained']:.3f}",
            f"{100 * each['difference']:+.1f}",
            *(f"{each[name]:.3f}" for name in shares),
            " / ".join(times),
        )
    return shown


def live_comparison(
    trace: Path, urls: Sequence[str], *, loads: str, arrivals: str, cap: int, requests: int | None, seed: int
) -> LiveComparison:
    """What the command's options ask for. Raises ValueError (BundleError), in one line."""
    settings = read_settings()
    recorded = read_trace(trace, lengths=True, first=requests)
    questions = sized_questions(settings.bundle)
    return LiveComparison(
        trace=trace.name,
        recorded=replace(recorded, source_tokens=questions.fitted(recorded.source_tokens, cap)),
        questions=questions,
        services=services_of(urls),
        loads=numbers(loads),
        arrivals=arrivals,
        seed=seed,
        bundle=settings.bundle,
        knobs=settings.batching,
    )


def run_live(comparison: LiveComparison, *, output: Path | None, as_json: bool) -> None:
    """Replay, write and print. Raises ValueError where a service does not answer."""
    figures = []
    with Progress(console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=comparison.runs)
        for each in comparison.run(lambda what: progress.update(bar, description=what)):
            figures += [] if each is None else [each]
            progress.advance(bar)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_text(output, json.dumps(comparison.record(figures)) + "\n")
    if as_json:
        plain = [{name: value for name, value in each.items() if name not in SAMPLES} for each in figures]
        print(json.dumps(plain, allow_nan=False))
    else:
        Console(soft_wrap=True).print(table(figures))
