"""`trident evaluate`: questions and summaries of documents that were never trained on, by whoever answers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rich.console import Console
from rich.progress import track

from training.data.readers import read_questions, read_records
from training.evaluation import scores

if TYPE_CHECKING:
    from training.evaluation.predictors import Predictor  # whose client of a service PyTorch's predictor does without

Item = TypeVar("Item")
Figures = dict[str, float | int | str]


def evaluate_questions(predictor: Predictor, data: Path, limit: int | None) -> Figures:
    """Exact match and F1, in percent, of the best answer."""
    questions = [question for question in read_questions(data) if question.answers][:limit]
    require(questions, data)
    matches, shares = 0.0, 0.0
    for question, answer in zip(questions, tracked(predictor.answer(questions), len(questions)), strict=True):
        references = [reference.text for reference in question.answers]
        matches += scores.exact_match(answer, references)
        shares += scores.f1(answer, references)
    return {
        "questions": len(questions),
        "documents": len({question.document for question in questions}),
        "exact_match": 100 * matches / len(questions),
        "f1": 100 * shares / len(questions),
        "predictor": predictor.description,
    }


def evaluate_summaries(predictor: Predictor, data: Path, limit: int | None) -> Figures:
    """ROUGE and BLEU of one summary a text."""
    records = list(islice(read_records(data, "source", "targets"), limit))
    require(records, data)
    texts = list(tracked(predictor.summarise([record["source"] for record in records]), len(records)))
    references = [record["targets"] for record in records]
    return {
        "texts": len(texts),
        "references": max(map(len, references)),
        **scores.rouge(texts, references),
        "bleu": scores.bleu(texts, references),
        "mean_words": sum(len(text.split()) for text in texts) / len(texts),
        "predictor": predictor.description,
    }


def require(items: Sequence[object], data: Path) -> None:
    """Raises ValueError where there is nothing to evaluate."""
    if not items:
        raise ValueError(f"{data} holds nothing to evaluate")


def tracked(items: Iterator[Item], total: int) -> Iterator[Item]:
    """The items, with a progress bar on stderr."""
    return iter(track(items, "Evaluating", total=total, console=Console(stderr=True)))
