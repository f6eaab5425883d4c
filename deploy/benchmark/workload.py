"""What requests ask: bodies of the three tasks, drawn from a JSONL file or from built-in paragraphs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

PARAGRAPHS = (
    "The lighthouse on the northern cape was built in 1871 by Elias Berg, a mason from the village below. For sixty "
    "years its lamp burned whale oil, and a keeper climbed its 142 steps every evening. In 1931 an electric lamp "
    "replaced the oil, and the last keeper, Anna Holm, opened a small museum in the rooms where she had lived.",
    "Rain had fallen on the valley for nine days when the old bridge gave way. Nobody was hurt, because the baker had "
    "heard the timbers crack and had closed the road with his cart. The council met the same evening and decided to "
    "build a new bridge of stone two hundred metres upstream, where the banks are higher and the river is narrow.",
    "A heat pump moves heat instead of making it. A compressor squeezes a gas until it is hot, the heat is given to "
    "the house, and the cooled gas expands again outside, where it takes up warmth from air or ground. For every "
    "kilowatt hour of electricity it delivers three to four kilowatt hours of heat, so it pays best in mild winters.",
)
QUESTIONS = (
    ("Who built the lighthouse?", "Who was the last keeper?", "When was the lighthouse built?"),
    ("Who closed the road?", "How long had the rain fallen?", "Where will the new bridge be built?"),
    ("What does a compressor squeeze?", "How much heat does it deliver?", "When does a heat pump pay best?"),
)


TASKS = ("generation", "qa", "summary")


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """One request of the load: where it goes and what it says."""

    path: str
    """Endpoint, e.g. `/v1/generate`."""

    body: dict[str, Any]
    """JSON body as it is sent."""

    streams: bool
    """Whether the answer is a stream of server-sent events."""


def built_in(mix: dict[str, float], max_new_tokens: int, seed: int) -> Iterator[Query]:
    """Endless queries of the built-in paragraphs.

    Args:
        mix: Weight of each task in `TASKS`, as `parse_mix` reads it.
        max_new_tokens: Bound on generated tokens; lengths are drawn uniformly from 1 to it, as real loads are mixed.
        seed: Equal seeds give equal loads.
    """
    generator = np.random.default_rng(seed)
    tasks = list(mix)
    weights = np.asarray([mix[task] for task in tasks], dtype=float)
    while True:
        task = tasks[generator.choice(len(tasks), p=weights / weights.sum())]
        index = int(generator.integers(len(PARAGRAPHS)))
        length = int(generator.integers(1, max_new_tokens + 1))
        paragraph = PARAGRAPHS[index]
        if task == "qa":
            question = QUESTIONS[index][int(generator.integers(3))]
            yield Query(path="/v1/qa", body={"question": question, "context": paragraph}, streams=False)
        elif task == "summary":
            body = {"text": paragraph, "max_new_tokens": length, "num_beams": 1, "stream": True}
            yield Query(path="/v1/summarize", body=body, streams=True)
        else:
            body = {"prompt": paragraph, "max_new_tokens": length, "temperature": 0, "stream": True}
            yield Query(path="/v1/generate", body=body, streams=True)


def from_file(path: Path) -> Iterator[Query]:
    """Queries of a JSONL file (`{"path": "/v1/qa", "body": {…}}` a line), again and again.

    Raises ValueError naming the line that is none, before the first query is asked for.
    """
    queries = []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text; write one JSON object a line with `path` and `body`") from None
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            match json.loads(line):
                case {"path": str(where), "body": dict(body)}:
                    queries.append(Query(path=where, body=body, streams=bool(body.get("stream"))))
                    continue
        except json.JSONDecodeError:
            pass
        raise ValueError(f"{path}, line {number} is no query: write a JSON object with `path` and `body`")
    if not queries:
        raise ValueError(f"{path} holds no queries; write one JSON object a line with `path` and `body`")
    return cycle(queries)


def parse_mix(text: str) -> dict[str, float]:
    """Read `generation=2,qa=1` into weights. Raises ValueError for an unknown task, or weights that are none."""
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.partition("=")
        task = name.strip()
        if task not in TASKS:
            raise ValueError(f"{task!r} in the mix is no task: choose from {', '.join(TASKS)}")
        try:
            mix[task] = float(weight or 1)
        except ValueError:
            raise ValueError(f"{part!r} is not TASK=WEIGHT; write for instance generation=2,qa=1") from None
    if not 0 < sum(mix.values()) < math.inf or min(mix.values()) < 0:
        raise ValueError(f"the weights of {text!r} must be positive")
    return mix
