"""How fast a decoder writes: the same clock around whatever generates.

A program of this kind decodes for itself, without a server, and prints one JSON object: for each number of rows the
seconds of every repeat, to the first token (the sources are encoded meanwhile) and to the last.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np

from deploy.benchmark.peers.options import DecodingOptions

Generate = Callable[[np.ndarray, int], int]
"""Sources INT64 [B,S] and how many tokens to write for each, neither more nor fewer → tokens written in all."""

FIRST_WORD, VOCABULARY = 16, 32_000
"""Ids of the sources: what stands below is special."""


def measure(generate: Generate, options: DecodingOptions) -> None:
    """Time it for every number of rows, and print what was seen. Raises ValueError where tokens are missing."""
    random = np.random.default_rng(options.seed)
    found = []
    for rows in options.rows:
        sources_BS = random.integers(FIRST_WORD, VOCABULARY, (rows, options.source_tokens))
        generate(sources_BS, 2)
        seen: dict[int, list[float]] = {1: [], options.new_tokens: []}
        for _ in range(options.repeats):
            for tokens, seconds in seen.items():
                start_s = time.perf_counter()
                written = generate(sources_BS, tokens)
                seconds.append(time.perf_counter() - start_s)
                if written != rows * tokens:
                    raise ValueError(f"{written} tokens were written in place of {rows} × {tokens}")
        found.append({"rows": rows, "first_s": seen[1], "whole_s": seen[options.new_tokens]})
    print(json.dumps({"settings": options.model_dump(mode="json"), "runs": found}))
