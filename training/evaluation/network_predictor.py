"""Answers of trained weights, in PyTorch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

import torch

from model.network import HybridModel
from model.tokenizer import QA, SEP, SUMMARY, decode, load_tokenizer
from training.data.readers import Question
from training.data.tokenise import context_windows

Item = TypeVar("Item")
WINDOW_TOKENS = 384
BATCH = 32
SUMMARY_TOKENS = 96


def load_weights(folder: Path) -> tuple[HybridModel, Path]:
    """The network in a folder that `trident train` wrote, and the folder. Raises ValueError where it holds none."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no trained network: name the `weights` folder of a run")
    return HybridModel.from_pretrained(folder).eval(), folder


def on_device(model: HybridModel) -> HybridModel:
    """The network on the GPU, where there is one."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]


class NetworkPredictor:
    """Trained weights in PyTorch, fp32; summaries are greedy."""

    description = "PyTorch, greedy"

    def __init__(self, weights: tuple[HybridModel, Path]) -> None:
        self._model, self._tokenizer = on_device(weights[0]), load_tokenizer(weights[1])

    def answer(self, questions: Sequence[Question]) -> Iterator[str]:
        """The best span over all windows of each context."""
        for batch in batched(questions, BATCH):
            yield from self._best_spans(batch)

    @torch.inference_mode()
    def _best_spans(self, questions: Sequence[Question]) -> Iterator[str]:
        texts = [[question.question, question.context] for question in questions]
        encoded = [self._tokenizer.encode_batch(pair, add_special_tokens=False) for pair in texts]
        heads = [[QA, *question.ids[: WINDOW_TOKENS // 2], SEP] for question, _ in encoded]
        windows = [
            (number, begin, end)
            for number, (head, (_, context)) in enumerate(zip(heads, encoded, strict=True))
            for begin, end in context_windows(len(context.ids), WINDOW_TOKENS - len(head))
        ]
        rows = [[*heads[number], *encoded[number][1].ids[begin:end]] for number, begin, end in windows]
        source_BS, lengths_B = self._padded(rows)
        sizes_B = torch.tensor([len(heads[number]) for number, _, _ in windows], device=lengths_B.device)
        emissions_BS3 = self._model.emissions(self._model.encode(source_BS, lengths_B), lengths_B)
        # Relative to no span, scores of different windows compare.
        scores_BSL = self._model.extractive.crf.span_scores(emissions_BS3, torch.stack([sizes_B, lengths_B], dim=1))
        highest_B, places_B = scores_BSL.flatten(1).max(1)
        candidates = list(zip(highest_B.tolist(), places_B.tolist(), windows, strict=True))
        for number, question in enumerate(questions):
            _, place, window = max((each for each in candidates if each[2][0] == number), key=itemgetter(0))
            start, more = divmod(place, scores_BSL.shape[2])
            first = window[1] + start - len(heads[number])
            offsets = encoded[number][1].offsets
            yield question.context[offsets[first][0] : offsets[first + more][1]].strip()

    def summarise(self, texts: Sequence[str]) -> Iterator[str]:
        """The most likely tokens, one by one."""
        for batch in batched(texts, BATCH):
            limit = self._model.config.max_positions - 1
            encodings = self._tokenizer.encode_batch(batch, add_special_tokens=False)
            source_BS, lengths_B = self._padded([[SUMMARY, *each.ids[:limit]] for each in encodings])
            for ids in self._model.greedy("pointer", source_BS, lengths_B, SUMMARY_TOKENS):
                yield decode(self._tokenizer, ids).strip()

    def _padded(self, rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        device = self._model.device
        tensors = [torch.tensor(row, device=device) for row in rows]
        lengths_B = torch.tensor([len(row) for row in rows], device=device)
        return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True), lengths_B


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of so many items, the last one of what is left; itertools has it from Python 3.12 on."""
    remaining = iter(items)
    while batch := list(islice(remaining, size)):
        yield batch
