"""Prompts for simulations in which answers are written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from deploy.triton.protocol import Task
from service.batching.policies import Policy, Predictive
from service.batching.simulation.engine import Machine
from service.batching.simulation.generation import Generation, Prompts, WrittenOutcome
from service.batching.tiers import Tier

MACHINE = Machine()
LIMIT = 128


def prompts(load: float, *, count: int = 300, seed: int = 1, flex: float = 0.0) -> Prompts:
    """Prompts of about a hundred tokens, answers of about forty."""
    generator = np.random.default_rng(seed)
    unhurried = Prompts(
        tokens=generator.lognormal(4.6, 0.8, count).astype(int).clip(8, 512),
        answers=generator.lognormal(3.7, 0.6, count).astype(int).clip(2, LIMIT),
        limits=np.full(count, LIMIT),
        shortest=np.zeros(count, int),
        arrivals_s=np.zeros(count),
        deadlines_s=np.zeros(count),
        tasks=[Task.GENERATION if each < 0.6 else Task.SUMMARY for each in generator.random(count)],
        tiers=[Tier.FLEX if each < flex else Tier.PRIORITY for each in generator.random(count)],
    )
    return unhurried.at(load, MACHINE, generator)


def run(given: Prompts, policy: Policy | None = None, **how: object) -> WrittenOutcome:
    generation = Generation(prompts=given, machine=MACHINE, policy=policy or Predictive())
    return replace(generation, **how).run()  # type: ignore[arg-type]


def only(given: Prompts, which: np.ndarray) -> Prompts:
    """Some of them, at the same times."""
    columns = ("tokens", "answers", "limits", "shortest", "arrivals_s", "deadlines_s")
    chosen = {name: getattr(given, name)[which] for name in columns}
    indices = np.flatnonzero(which).tolist()
    return replace(given, **chosen, tasks=[given.tasks[i] for i in indices], tiers=[given.tiers[i] for i in indices])


def beside_flex(patience: float, seed: int = 1) -> tuple[Prompts, np.ndarray]:
    """Both classes at load 1.2: priority within so many times what it takes alone, flex within ten minutes."""
    given = prompts(1.2, count=600, seed=seed, flex=0.5)
    urgent = np.array([tier is Tier.PRIORITY for tier in given.tiers])
    within_s = np.where(urgent, patience * given.alone_s(MACHINE), 600.0)
    return replace(given, deadlines_s=given.arrivals_s + within_s), urgent
