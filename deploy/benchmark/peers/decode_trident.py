"""Trident's engine, in this process, on the shipped bundle: its generative decoder, greedy."""

from __future__ import annotations

from itertools import count

import numpy as np

from deploy.benchmark.peers.decoding import measure
from deploy.benchmark.peers.options import DecodingOptions
from deploy.triton.engine import Engine
from deploy.triton.limits import EngineSettings
from deploy.triton.protocol import BatchNews, GenerationBatch, Row, Sampling, Source, Task

TASK_TOKEN = 5


def main() -> None:
    """Measure and print."""
    options = DecodingOptions()
    engine, ids = Engine(options.bundle, EngineSettings(slots=max(options.rows))), count()

    def generate(sources_BS: np.ndarray, tokens: int) -> int:
        sampling = Sampling(max_new_tokens=tokens, min_new_tokens=tokens, temperature=0.0)
        rows = []
        for source in sources_BS:
            source[0] = TASK_TOKEN
            rows.append(Row(row_id=next(ids), source=Source(source), sampling=sampling))
        written = 0

        def hear(news: BatchNews) -> None:
            nonlocal written
            written += sum(len(update.tokens) for update in news.updates)

        engine.submit(GenerationBatch(task=Task.GENERATION, rows=tuple(rows)), hear)
        while engine.step():
            pass
        return written

    measure(generate, options)


if __name__ == "__main__":
    main()
