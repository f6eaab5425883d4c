"""Translation by any sequence-to-sequence model that transformers loads from a folder or by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training.data.pipeline.words import split_sentences

PARAGRAPH = re.compile(r"(\n+)")


class Translator:
    """One model and its tokenizer; texts of any length go through it sentence by sentence.

    A model may not know the language it translates to from its weights alone; models that need a prefix or a forced
    token, such as T5 and M2M100, carry it in their generation configuration.
    """

    def __init__(self, model: str, *, batch_sentences: int, max_tokens: int, num_beams: int, device: str) -> None:
        """Load the model; raises ValueError naming it where that fails."""
        from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

        if ("/" in model or model.startswith(".")) and not Path(model).is_dir() and Path(model).parent.is_dir():
            raise ValueError(f"there is no translation model {model}")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
            self.model: Any = AutoModelForSeq2SeqLM.from_pretrained(model).to(device).eval()
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{model} is no translation model that transformers loads: {error}") from error
        self.batch_sentences, self.max_tokens, self.num_beams = batch_sentences, max_tokens, num_beams
        self.device = device

    def translate(self, texts: Sequence[str]) -> list[str]:
        """Every text with its sentences translated and its paragraphs kept.

        Sentences of all texts are sorted by length and translated in batches, so little is padded.
        """
        split = [[split_sentences(part) for part in PARAGRAPH.split(text)] for text in texts]
        sentences = [sentence for text in split for part in text for sentence in part]
        order = sorted(range(len(sentences)), key=lambda n: len(sentences[n]))
        translated = [""] * len(sentences)
        for start in range(0, len(order), self.batch_sentences):
            chosen = order[start : start + self.batch_sentences]
            for number, made in zip(chosen, self._batch([sentences[n] for n in chosen]), strict=True):
                translated[number] = made
        following = iter(translated)
        return ["\n".join(" ".join(next(following) for _ in part) for part in text if part).strip() for text in split]

    def _batch(self, sentences: list[str]) -> list[str]:
        import torch

        inputs = self.tokenizer(
            sentences, return_tensors="pt", padding=True, truncation=True, max_length=self.max_tokens
        ).to(self.device)
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            made = self.model.generate(
                **inputs, max_new_tokens=self.max_tokens, num_beams=self.num_beams, do_sample=False
            )
        return [str(text).strip() for text in self.tokenizer.batch_decode(made, skip_special_tokens=True)]
