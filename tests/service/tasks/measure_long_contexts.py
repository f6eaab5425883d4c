"""F1 and scores of the shipped model on questions whose contexts grow by paragraphs of other articles.

    python -m tests.service.tasks.measure_long_contexts squad.json unanswerable.json --output found.json

Both files are SQuAD's format, as they are or compressed. The questions are taken evenly from the articles that training
holds out.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from pathlib import Path
from statistics import median

from service.gateway import build_gateway
from service.settings import Settings
from service.tasks.questions import Answers, Questions
from service.tasks.toolkit import RequestTime, Toolkit
from training.data.readers import Question, read_questions
from training.data.splits import held_out_articles
from training.evaluation.scores import f1

TIMEOUT_S = 600
GROWN = (1, 4, 16)
"""Characters of the grown context, in lengths of the question's own."""


def choose(questions: list[Question], titles: set[str], count: int) -> list[Question]:
    """Questions at even distances among those of some articles."""
    own = [each for each in questions if each.document in titles]
    return own[:: max(1, len(own) // count)][:count]


def grow(question: Question, paragraphs: list[tuple[str, str]], times: int) -> str:
    """The question's context somewhere among paragraphs of other articles."""
    chance = random.Random(question.identifier)
    others = [text for document, text in paragraphs if document != question.document]
    filler: list[str] = []
    while sum(map(len, filler)) < (times - 1) * len(question.context):
        filler.append(chance.choice(others))
    filler.insert(chance.randint(0, len(filler)), question.context)
    return "\n\n".join(filler)


async def ask(tools: Toolkit, question: str, context: str) -> Answers:
    """The best answer."""
    now_s = tools.clock.now_s()
    time = RequestTime(arrived_s=now_s, deadline_s=now_s + TIMEOUT_S)
    return await Questions(tools).answer(question, context, time, param="question")


def auc(low: list[float], high: list[float]) -> float:
    """How often one of `high` is above one of `low`."""
    wins = sum((a < b) + 0.5 * (a == b) for a in low for b in high)
    return wins / (len(low) * len(high))


async def measure(squad: Path, unanswerable: Path, count: int, threads: int) -> dict[str, object]:
    """F1, scores and the P(no answer) of both kinds for every length."""
    questions, without = list(read_questions(squad)), list(read_questions(unanswerable))
    titles = set(held_out_articles(each.document for each in questions))
    paragraphs = sorted({(each.document, each.context) for each in questions})
    answerable = choose([each for each in questions if each.answers], titles, count)
    nothing = choose(without, titles, count)
    gateway = build_gateway(Settings.model_validate({"runtime": "local", "local": {"threads": threads}}))
    rows = []
    async with gateway.running():
        tools = gateway.served.tools
        for times in GROWN:
            found = [await ask(tools, each.question, grow(each, paragraphs, times)) for each in answerable]
            none = [await ask(tools, each.question, grow(each, paragraphs, times)) for each in nothing]
            total = sum(
                f1(given.answers[0].text, [each.text for each in asked.answers])
                for asked, given in zip(answerable, found, strict=True)
            )
            yes, no = [each.no_answer_score for each in found], [each.no_answer_score for each in none]
            rows.append(
                {
                    "times": times,
                    "f1": round(100 * total / len(found), 2),
                    "median_score": round(median(each.answers[0].score for each in found), 4),
                    "median_no_answer_of_answerable": round(median(yes), 4),
                    "median_no_answer_of_unanswerable": round(median(no), 4),
                    "auc_of_no_answer": round(auc(yes, no), 4),
                }
            )
    return {
        "what": "The shipped bundle, local runtime, on contexts grown by paragraphs of other articles",
        "model": gateway.served.manifest.name,
        "answerable": len(answerable),
        "unanswerable": len(nothing),
        "lengths": rows,
    }


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("squad", type=Path)
    parser.add_argument("unanswerable", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--questions", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    found = asyncio.run(measure(options.squad, options.unanswerable, options.questions, options.threads))
    options.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
