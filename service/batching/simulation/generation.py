"""One run of a simulation in which answers are written: prompts come, the policy batches them, an engine writes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import cast

import numpy as np

from deploy.triton.protocol import BatchNews, EngineStats, FinishReason, GenerationBatch, Row, Sampling, Source, Task
from service.batching.batcher import Batcher
from service.batching.following import FollowedBatch
from service.batching.latency import BatchTime
from service.batching.lengths import AnswerLengths
from service.batching.load import PlaceLoad
from service.batching.pending import Pending, RunningBatch, State
from service.batching.policies import BatchLimits, Immediate, Policy
from service.batching.queue import RequestQueue
from service.batching.simulation.clock import SimulatedClock
from service.batching.simulation.engine import Machine, SimulatedEngine
from service.batching.simulation.replay import NO_LIMIT, ROUNDING_S, Outcome
from service.batching.simulation.requests import patience_s
from service.batching.steps import StepTime, StepTimes
from service.batching.tiers import Tier
from service.errors import ServiceError
from service.inference.place import Place, Standing
from service.inference.protocol import BundleIdentity, InferenceClient

FAR_S = 1e9
BATCH_S = 0.1
"""As the gateway's settings have it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prompts:
    """In the order of their arrival."""

    tokens: np.ndarray
    """INT [R], of their sources."""

    answers: np.ndarray
    """INT [R], tokens that their answers will have."""

    limits: np.ndarray
    """INT [R], tokens that their clients allow."""

    shortest: np.ndarray
    """INT [R], tokens that their clients insist on."""

    arrivals_s: np.ndarray
    """FP64 [R]"""

    deadlines_s: np.ndarray
    tasks: Sequence[Task]
    tiers: Sequence[Tier]

    def __len__(self) -> int:
        return len(self.tokens)

    def alone_s(self, machine: Machine) -> np.ndarray:
        """Seconds that each takes with the machine for itself: FP64 [R]."""
        step_s = machine.step_s + machine.row_s + machine.cached_s * (self.tokens + self.answers / 2)
        seconds: np.ndarray = machine.prefill.table_s(np.ones(1), self.tokens) + self.answers * step_s
        return seconds

    def at(self, load: float, machine: Machine, generator: np.random.Generator) -> Prompts:
        """The same as a Poisson process at a load; 1 is what the engine does where everything waits from the start.

        A request's deadline is five times what it takes alone, 50 ms at least.
        """
        count = len(self)
        unhurried = replace(self, arrivals_s=np.zeros(count), deadlines_s=np.full(count, FAR_S))
        seconds = float(Generation(prompts=unhurried, machine=machine, policy=Immediate()).run().ended_s.max())
        arrivals_s = np.cumsum(generator.exponential(seconds / count / load, count))
        deadlines_s = arrivals_s + patience_s(self.alone_s(machine))
        return replace(self, arrivals_s=arrivals_s, deadlines_s=deadlines_s)


@dataclass(kw_only=True, slots=True, eq=False)
class WrittenOutcome(Outcome):
    """How each prompt ended."""

    ended_s: np.ndarray
    """FP64 [R]: when its answer was there; NaN where it never was."""

    most_slots: int = 0
    """Of the engine, taken at once."""


@dataclass(kw_only=True, slots=True, eq=False)
class Generation:
    """One engine, and everything in front of it."""

    prompts: Prompts
    machine: Machine
    policy: Policy
    believed: Machine | None = None
    """What the gateway believes of the machine at first; without it the truth."""

    lengths: AnswerLengths = field(default_factory=AnswerLengths)
    """What it believes of answers at first."""

    clock: SimulatedClock = field(default_factory=SimulatedClock)

    def run(self) -> WrittenOutcome:
        """From the first arrival until the last prompt has ended."""
        count = len(self.prompts)
        none = partial(np.zeros, count, bool)
        outcome = WrittenOutcome(
            in_time=none(),
            late=none(),
            rejected=none(),
            waited_s=np.full(count, np.nan),
            ended_s=np.full(count, np.nan),
        )
        answers = self.prompts.answers
        engine = SimulatedEngine(self.machine, self.clock, lambda row_id: int(answers[row_id]))
        place = Place("simulated", cast(InferenceClient, None), BundleIdentity(name="", sha256=""), {}, timeout_s=1.0)
        place.standing, place.stats = Standing.READY, engine.stats
        believed = self.believed or self.machine
        load: PlaceLoad[int] = PlaceLoad(
            place=place,
            capacity=lambda place: place.stats.slots_total * 3 // 2,
            latency=BatchTime(believed.prefill.coefficients),
            steps=steps_of(believed),
            tokens=lambda _: believed.prefill_tokens,
            ahead=1,
        )
        batcher: Batcher[int] = Batcher(
            queue=RequestQueue(NO_LIMIT),
            policy=self.policy,
            limits=BatchLimits(rows=32, tokens=8192, least_filled=0.75, seconds=BATCH_S),
            loads=[load],
            clock=self.clock,
            send=lambda batch: self._send(batcher, engine, outcome, batch),
        )
        batcher.lengths = self.lengths
        for index, arrival_s in enumerate(self.prompts.arrivals_s.tolist()):
            self.clock.call_at(arrival_s, partial(self._submit, batcher, engine, outcome, index))
        self.clock.run()
        assert not load.slots, "whatever is sent comes back"
        assert not load.decoding.writing, "whatever is written ends"
        assert not engine.stats.slots_used, "whatever has ended leaves its slots"
        outcome.most_slots = engine.most_slots
        return outcome

    def _submit(self, batcher: Batcher[int], engine: SimulatedEngine, outcome: WrittenOutcome, index: int) -> None:
        prompts = self.prompts

        def refuse(_: ServiceError) -> None:
            outcome.rejected[index] = True

        def expire() -> None:
            outcome.late[index] = True
            if pending.state is State.RUNNING:
                engine.cancel([index])

        task, tokens = prompts.tasks[index], int(prompts.tokens[index])
        pending = Pending(
            payload=index,
            tokens=tokens,
            group=task,
            deadline_s=float(prompts.deadlines_s[index]) + ROUNDING_S,
            on_deadline=expire,
            on_refused=refuse,
            answer=batcher.lengths.expected(task, tokens, int(prompts.shortest[index]), int(prompts.limits[index])),
            tier=prompts.tiers[index],
        )
        try:
            batcher.submit(pending)
        except ServiceError as error:
            refuse(error)

    def _send(
        self, batcher: Batcher[int], engine: SimulatedEngine, outcome: WrittenOutcome, batch: RunningBatch[int]
    ) -> None:
        outcome.batches += 1
        rows = []
        for pending in batch.requests:
            outcome.waited_s[pending.payload] = batch.sent_s - pending.arrived_s
            sampling = Sampling(
                max_new_tokens=int(self.prompts.limits[pending.payload]),
                min_new_tokens=int(self.prompts.shortest[pending.payload]),
            )
            source = Source(np.zeros(pending.tokens, np.int64))
            rows.append(Row(row_id=pending.payload, source=source, sampling=sampling))
        task = self.prompts.tasks[batch.requests[0].payload]
        followed = FollowedBatch(batcher, batch, task, rows)

        def hear(news: BatchNews, stats: EngineStats) -> None:
            followed.hear(news, stats)
            for update in news.updates:
                if update.finish_reason is not FinishReason.CANCELLED:
                    outcome.ended_s[update.row_id] = self.clock.now_s()
                    outcome.in_time[update.row_id] = not outcome.late[update.row_id]

        engine.submit(GenerationBatch(task=task, rows=tuple(rows)), hear)


def steps_of(machine: Machine) -> StepTimes:
    """What a gateway that knows a machine believes of its steps."""
    start = (machine.step_s, machine.row_s, machine.cached_s)
    return StepTimes(StepTime(start), StepTime(start))
