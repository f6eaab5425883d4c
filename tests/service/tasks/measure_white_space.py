"""F1 of the shipped model on questions whose texts were spoilt in every way of `corruptions.py`, beside the plain F1.

    python -m tests.service.tasks.measure_white_space squad.json --output docs/results/white-space.json

`squad.json` is SQuAD 1.1's development file; the questions are taken evenly from the articles that training holds out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import numpy as np

from deploy.triton.protocol import Source
from service.batching.tiers import Tier
from service.gateway import build_gateway
from service.settings import Settings
from service.tasks.normalisation import normalise
from service.tasks.questions import Answer, Questions
from service.tasks.toolkit import RequestTime, Toolkit
from tests.service.tasks.corruptions import CORRUPTIONS, Corruption
from training.data.readers import Question, read_questions
from training.data.splits import held_out_articles
from training.evaluation.scores import f1

TIMEOUT_S = 600


class Remembering:
    """The lane of windows, which runs no window twice: most corruptions leave nothing to a reader."""

    def __init__(self, tools: Toolkit) -> None:
        self._lane = tools.windows
        self._known: dict[bytes, asyncio.Future[np.ndarray]] = {}

    def least_s(self, windows: int, tokens: int) -> float:
        """As the lane has it."""
        return self._lane.least_s(windows, tokens)

    def submit(
        self, source: Source, *, deadline_s: float, bounded: bool, flow: Hashable, tier: Tier
    ) -> asyncio.Future[np.ndarray]:
        """A window's scores."""
        key = source.ids.tobytes()
        if key not in self._known:
            self._known[key] = self._lane.submit(source, deadline_s=deadline_s, bounded=bounded, flow=flow, tier=tier)
        return self._known[key]


def choose(path: Path, count: int) -> list[Question]:
    """Questions at even distances among those of the held-out articles."""
    questions = list(read_questions(path))
    held_out = held_out_articles(each.document for each in questions)
    own = [each for each in questions if each.document in held_out and each.answers]
    return own[:: max(1, len(own) // count)][:count]


def same(text: str, _: random.Random) -> str:
    """The text itself."""
    return text


def seen(context: str, answer: Answer) -> str:
    """What a reader of the context sees in the answer's place."""
    whole = normalise(context)
    inside = (at for at in range(len(whole.text)) if answer.start <= whole.origin(at) < answer.end)
    return "".join(whole.text[at] for at in inside)


async def score(tools: Toolkit, asked: list[Question], corrupt: Corruption) -> float:
    """F1 in percent."""
    questions, total = Questions(tools), 0.0
    for each in asked:
        chance = random.Random(each.identifier)
        context, question = corrupt(each.context, chance), corrupt(each.question, chance)
        now_s = tools.clock.now_s()
        time = RequestTime(arrived_s=now_s, deadline_s=now_s + TIMEOUT_S)
        (answer,) = (await questions.answer(question, context, time, param="question")).answers
        assert context[answer.start : answer.end] == answer.text
        total += f1(seen(context, answer), [reference.text for reference in each.answers])
    return 100 * total / len(asked)


async def measure(path: Path, count: int, threads: int) -> dict[str, object]:
    """F1 of every kind."""
    asked = choose(path, count)
    settings = Settings.model_validate({"runtime": "local", "local": {"threads": threads}})
    gateway = build_gateway(settings)
    async with gateway.running():
        tools = gateway.served.tools
        remembering = replace(tools, windows=Remembering(tools))  # type: ignore[arg-type]
        plain = await score(remembering, asked, same)
        rows = []
        for kind, corrupt in CORRUPTIONS.items():
            found = await score(remembering, asked, corrupt)
            rows.append({"kind": kind, "f1": round(found, 2), "of_plain": round(found / plain, 3)})
            print(f"{kind:36} {found:6.2f} {found / plain:7.1%}", file=sys.stderr, flush=True)
    return {
        "what": "F1 of the shipped bundle, local runtime, on spoilt contexts and questions",
        "model": gateway.served.manifest.name,
        "questions": len(asked),
        "articles": sorted({each.document for each in asked}),
        "plain_f1": round(plain, 2),
        "kinds": rows,
    }


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=120)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    found = asyncio.run(measure(options.data, options.questions, options.threads))
    options.output.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
