"""What the predictive policy costs: microseconds of a decision, and of a request's way through the queue.

    python -m tests.service.batching.measure_decisions --output docs/results/policy-decisions.json

A thousand requests of 1 to 512 tokens wait; every decision takes its batch away, and as many others come.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np

from service.batching.decoding import Decoding
from service.batching.forecast import Forecast
from service.batching.latency import BatchTime
from service.batching.pending import Pending
from service.batching.policies import BatchLimits, Predictive, View
from service.batching.queue import RequestQueue
from service.batching.steps import StepTimes

WAITING = 1000
DECISIONS = 1000
ROUNDS = 5
INTERVAL_S = 1 / 500


class Traffic:
    """A queue that stays as full as it is."""

    def __init__(self) -> None:
        self.queue: RequestQueue[int] = RequestQueue(1 << 40)
        self._generator = np.random.default_rng(0)
        self._policy, self._latency, self._forecast = Predictive(), BatchTime(), Forecast()
        self._decoding = Decoding(StepTimes())

    def come(self, now_s: float, count: int) -> None:
        """So many requests, due in 1 to 60 s."""
        lengths = self._generator.lognormal(5.5, 1.0, count).astype(int).clip(1, 512)
        for tokens, patience_s in zip(lengths.tolist(), self._generator.uniform(1, 60, count).tolist(), strict=True):
            request = Pending(
                payload=0,
                tokens=tokens,
                group="model",
                flow=object(),
                deadline_s=now_s + patience_s,
                on_deadline=lambda: None,
                on_refused=lambda _: None,
                arrived_s=now_s,
            )
            self.queue.add(request)

    def decide(self, now_s: float) -> tuple[float, float]:
        """Seconds of this thread for a decision, and for the queue's part of what follows from it."""
        view = View(
            queue=self.queue,
            now_s=now_s,
            forecast=self._forecast,
            free_slots=32,
            elsewhere=False,
            idle=True,
            limits=BatchLimits(rows=32, tokens=8192, seconds=0.1),
            latency=self._latency,
            decoding=self._decoding,
            running=(),
        )
        began_s = time.thread_time()
        decision = self._policy.decide(view)
        decided_s = time.thread_time()
        for request in decision.batch:
            self.queue.take(request)
        for request, _ in decision.refused:
            self.queue.remove(request)
        taken_s = time.thread_time()
        self.come(now_s, len(decision.batch) + len(decision.refused))
        return decided_s - began_s, taken_s - decided_s


def main() -> None:
    """Print the figures, and write them with every round's."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--output", type=Path, required=True)
    output: Path = arguments.parse_args().output
    traffic = Traffic()
    traffic.come(0.0, WAITING)
    rounds = []
    for number in range(ROUNDS + 1):
        times = [traffic.decide((number * DECISIONS + index) * INTERVAL_S) for index in range(DECISIONS)]
        decided, taken = (1e6 * statistics.fmean(part) for part in zip(*times, strict=True))
        rounds.append(
            {"decision_us": decided, "median_us": 1e6 * statistics.median(t[0] for t in times), "queue_us": taken}
        )
    # The first round warms caches.
    del rounds[0]
    decision_us = statistics.median(each["decision_us"] for each in rounds)
    record = {
        "what": "decisions of predictive",
        "machine": f"{platform.machine()}, Python {platform.python_version()}, numpy {np.__version__}",
        "waiting": len(traffic.queue),
        "rounds": rounds,
        "share_of_a_core_at_500_a_second": 500e-6 * decision_us,
    }
    output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
