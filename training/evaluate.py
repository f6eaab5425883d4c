"""`trident evaluate`: questions, summaries and continuations of documents that were never trained on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from rich.progress import track

from model.losses import IGNORE, cross_entropy, shift_right
from model.network import HybridModel
from model.tokenizer import GENERATION, encode, load_tokenizer
from training import scores
from training.data.readers import read_questions, read_records
from training.predictors import NetworkPredictor, Predictor, ServicePredictor, load_weights, on_device

Item = TypeVar("Item")
Figures = dict[str, float | int | str]

PROMPT_TOKENS, CONTINUATION_TOKENS = 192, 192
"""A document is continued once, after its first tokens."""


def make_predictor(checkpoint: Path | None, url: str | None) -> Predictor:
    """Who answers. Raises ValueError unless exactly one is named."""
    if (checkpoint is None) == (url is None):
        raise ValueError("say who answers: either --checkpoint FOLDER or --url http://HOST:PORT")
    return ServicePredictor(url) if url is not None else NetworkPredictor(load_weights(Path(str(checkpoint))))


def evaluate_questions(predictor: Predictor, data: Path, limit: int | None) -> Figures:
    """Exact match and F1, in percent, of the best answer."""
    questions = [question for question in read_questions(data) if question.answers][:limit]
    _require(questions, data)
    matches, shares = 0.0, 0.0
    for question, answer in zip(questions, _tracked(predictor.answer(questions), len(questions)), strict=True):
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
    _require(records, data)
    texts = list(_tracked(predictor.summarise([record["source"] for record in records]), len(records)))
    references = [record["targets"] for record in records]
    return {
        "texts": len(texts),
        "references": max(map(len, references)),
        **scores.rouge(texts, references),
        "bleu": scores.bleu(texts, references),
        "mean_words": sum(len(text.split()) for text in texts) / len(texts),
        "predictor": predictor.description,
    }


@torch.inference_mode()
def evaluate_continuation(weights: tuple[HybridModel, Path], data: Path, limit: int | None) -> Figures:
    """Bits per byte of each document's continuation after its first tokens, under the generative decoder."""
    model, folder = on_device(weights[0]), weights[1]
    tokenizer = load_tokenizer(folder)
    documents = [record["text"] for record in islice(read_records(data, "text"), limit)]
    _require(documents, data)
    nats, size = 0.0, 0
    for text in _tracked(iter(documents), len(documents)):
        ids = encode(tokenizer, text)
        target = ids[PROMPT_TOKENS : PROMPT_TOKENS + CONTINUATION_TOKENS]
        if not target:
            continue
        source_BS = torch.tensor([[GENERATION, *ids[:PROMPT_TOKENS]]], device=model.device)
        labels_BT = torch.tensor([target], device=model.device)
        memory_BSD = model.encode(source_BS)
        states_BTD = model.decoder_states("generative", memory_BSD, None, shift_right(model, labels_BT))
        nats += float(cross_entropy(model, states_BTD, labels_BT)[labels_BT != IGNORE].sum())
        size += len(tokenizer.decode(target, skip_special_tokens=False).encode())
    if not size:
        raise ValueError(f"{data} has no document of more than {PROMPT_TOKENS} tokens")
    return {"documents": len(documents), "bytes": size, "bits_per_byte": nats / size / math.log(2)}


def _require(items: Sequence[object], data: Path) -> None:
    if not items:
        raise ValueError(f"{data} holds nothing to evaluate")


def _tracked(items: Iterator[Item], total: int) -> Iterator[Item]:
    return iter(track(items, "Evaluating", total=total, console=Console(stderr=True)))
