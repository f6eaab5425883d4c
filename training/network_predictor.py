"""Answers of trained weights, in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

from model.network import HybridModel
from model.tokenizer import QA, SEP, SUMMARY, decode, load_tokenizer
from training.data.readers import Question
from training.data.tokenise import context_windows

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
        for question in questions:
            yield self._best_span(question)

    @torch.inference_mode()
    def _best_span(self, question: Question) -> str:
        ids = self._tokenizer.encode(question.question, add_special_tokens=False).ids[: WINDOW_TOKENS // 2]
        context = self._tokenizer.encode(question.context, add_special_tokens=False)
        head = [QA, *ids, SEP]
        windows = list(context_windows(len(context.ids), WINDOW_TOKENS - len(head)))
        source_BS, lengths_B = self._padded([[*head, *context.ids[begin:end]] for begin, end in windows])
        emissions_BS3 = self._model.emissions(self._model.encode(source_BS, lengths_B), lengths_B)
        bounds_B2 = torch.stack([torch.full_like(lengths_B, len(head)), lengths_B], dim=1)
        # Relative to no span, scores of different windows compare.
        scores_BSL = self._model.extractive.crf.span_scores(emissions_BS3, bounds_B2)
        window, start, more = torch.unravel_index(scores_BSL.argmax(), scores_BSL.shape)
        first = windows[int(window)][0] + int(start) - len(head)
        begin, end = context.offsets[first][0], context.offsets[first + int(more)][1]
        return question.context[begin:end].strip()

    def summarise(self, texts: Sequence[str]) -> Iterator[str]:
        """The most likely tokens, one by one."""
        remaining = iter(texts)
        while batch := list(islice(remaining, BATCH)):
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
