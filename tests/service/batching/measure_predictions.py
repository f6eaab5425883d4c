"""How far predictions are off on the real engine, and what warming shapes brings the first burst.

python -m tests.service.batching.measure_predictions --output docs/results/predictions.json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np

from deploy.triton.limits import EngineSettings
from deploy.triton.manifest import load_manifest
from deploy.triton.protocol import GenerationBatch, Row, Sampling, Source, Task
from service.batching.latency import BatchTime
from service.batching.load import PlaceLoad
from service.calibration import Calibration
from service.inference.local import LocalClient
from service.inference.place import Place
from service.inference.protocol import BundleIdentity
from service.settings import PRETRAINED
from service.state_file import machine

LEARNT, ASKED = 100, 60
CLASSES = (64, 256)
BURST = ((4, 190), (4, 250), (8, 100), (2, 400))
IDLE_S = 3.0


class Bench:
    """An engine with the shipped bundle, and models that learn from it."""

    def __init__(self) -> None:
        self.manifest = load_manifest(PRETRAINED, verify=False)
        self.client = LocalClient(PRETRAINED, EngineSettings(slots=32, verify=False))
        identity = BundleIdentity(name="", sha256="")
        place = Place("local", self.client, identity, self.manifest.special_tokens, timeout_s=5.0)
        self.rows = PlaceLoad[Any](place=place, capacity=lambda _: 32, latency=BatchTime())
        self.windows = PlaceLoad[Any](place=place, capacity=lambda _: 32, latency=BatchTime())

    async def calibrate(self) -> float:
        """Seconds that it took."""
        calibration = Calibration(
            client=self.client,
            rows=self.rows,
            windows=self.windows,
            special_tokens=self.manifest.special_tokens,
            window_tokens=self.manifest.limits.qa_window_tokens,
        )
        began_s = time.perf_counter()
        await calibration.run(await self.client.server(), 2.0)
        return time.perf_counter() - began_s

    async def window(self, rows: int, tokens: int) -> tuple[float, float]:
        """Predicted and computed seconds of a batch of windows."""
        ids = np.full((rows, tokens), 100, np.int64)
        ids[:, 0], ids[:, tokens // 2] = self.manifest.special_tokens["<qa>"], self.manifest.special_tokens["<sep>"]
        predicted = self.windows.latency.predict_s(rows, tokens)
        before = await self.client.times("qa")
        await self.client.infer("qa", {"input_ids": ids, "lengths": np.full((rows, 1), tokens, np.int32)})
        took = (await self.client.times("qa") - before).seconds
        self.windows.latency.observe(rows, tokens, took)
        return predicted, took

    async def write(self, rows: int, tokens: int, new_tokens: int) -> dict[str, list[tuple[float, float]]]:
        """Predicted and reported seconds of a prefill, and of its steps' mean."""
        ids = np.full(tokens, 100, np.int64)
        ids[0] = self.manifest.special_tokens["<generation>"]
        sampling = Sampling(max_new_tokens=new_tokens, min_new_tokens=new_tokens, temperature=0.0)
        batch = tuple(Row(row_id=random.getrandbits(62), source=Source(ids), sampling=sampling) for _ in range(rows))
        prefills, before = [], (await self.client.stats()).generation_steps
        steps, latency = self.rows.steps.generation, self.rows.latency
        async for news, _ in self.client.generate(GenerationBatch(task=Task.GENERATION, rows=batch)):
            for prefill in news.prefills:
                prefills.append((latency.predict_s(prefill.rows, prefill.tokens), prefill.seconds))
                latency.observe(prefill.rows, prefill.tokens, prefill.seconds)
        totals = (await self.client.stats()).generation_steps
        ran = totals - before
        predicted = steps.predict_s(ran.rows / ran.steps, ran.cached_tokens / ran.steps)
        steps.learn(totals)
        return {"prefills": prefills, "steps": [(predicted, ran.seconds / ran.steps)]}

    async def burst(self) -> list[float]:
        """Seconds from the burst to the end of each of its batches."""
        began_s = time.perf_counter()

        async def one(rows: int, tokens: int) -> float:
            await self.write(rows, tokens, 8)
            return time.perf_counter() - began_s

        return await asyncio.gather(*(one(*shape) for shape in BURST))


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    """A fresh one."""
    fresh = Bench()
    await fresh.client.start()
    try:
        yield fresh
    finally:
        await fresh.client.close()


def summary(samples: Iterable[tuple[int, int, float, float]]) -> dict[str, Any]:
    """Median and 90th percentile of relative errors, of all shapes and by tokens."""
    by_class: dict[str, list[float]] = {"all": []}
    for _, tokens, predicted, took in samples:
        name = next((f"<={bound}" for bound in CLASSES if tokens <= bound), f">{CLASSES[-1]}")
        for each in ("all", name):
            by_class.setdefault(each, []).append(abs(predicted - took) / took)
    return {
        name: {"median": float(np.median(errors)), "p90": float(np.quantile(errors, 0.9)), "samples": len(errors)}
        for name, errors in sorted(by_class.items())
    }


async def errors() -> dict[str, Any]:
    """Relative errors of predictions for random shapes: right after calibration, and after LEARNT batches."""
    shapes = random.Random(5)
    samples: dict[str, list[tuple[int, int, float, float]]] = {"windows": [], "prefills": [], "steps": []}
    async with bench() as engine:
        calibration_s = await engine.calibrate()
        for _ in range(LEARNT + ASKED):
            rows, tokens = shapes.choice((1, 1, 2, 4)), round(16 * 2 ** shapes.uniform(0, 4.5))
            samples["windows"].append((rows, tokens, *(await engine.window(rows, tokens))))
            for kind, pairs in (await engine.write(rows, tokens, 6)).items():
                samples[kind] += [(rows, tokens, *pair) for pair in pairs]
    return {
        "calibration_s": calibration_s,
        "after_calibration": {kind: summary(each[:20]) for kind, each in samples.items()},
        f"after_{LEARNT}": {kind: summary(each[LEARNT:]) for kind, each in samples.items()},
        "samples": samples,
    }


async def bursts(warm: bool) -> dict[str, Any]:
    """The first burst of an engine that has been calibrated and was idle since."""
    async with bench() as engine:
        await engine.calibrate()
        if warm:
            await engine.burst()
        await asyncio.sleep(IDLE_S)
        return {"warm": warm, "first_s": await engine.burst(), "second_s": await engine.burst()}


async def main() -> None:
    """Measure, and write the raw figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(), "load_average": os.getloadavg(), "errors": await errors()}
    found["bursts"] = [await bursts(warm) for _ in range(given.repeats) for warm in (False, True)]
    for warm in (False, True):
        longest = [max(each["first_s"]) for each in found["bursts"] if each["warm"] is warm]
        found[f"first_burst_p99_s_{'warm' if warm else 'cold'}"] = {
            "median": float(np.median(longest)),
            "runs": longest,
        }
    given.output.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: each for name, each in found.items() if name not in ("errors", "bursts")}, indent=1))
    print(json.dumps({name: each for name, each in found["errors"].items() if name != "samples"}, indent=1))


if __name__ == "__main__":
    asyncio.run(main())
