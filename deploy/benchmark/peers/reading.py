"""Questions to windows of token ids, and their tag scores to answers: the gateway's own code, for all peers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploy.triton.manifest import load_manifest
from service.tasks.merging import MergedAnswers
from service.tasks.normalisation import Lines
from service.tasks.questions import SPANS_KEPT, add_window, best_answers
from service.tasks.reading import Reading, read_freely
from service.tasks.spans import SpanReader, make_windows
from service.tasks.tokens import TextCodec


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Question:
    """A question about a context, as the model reads it."""

    windows: list[np.ndarray]
    """INT64 [S] each: task token, question, separator, a stretch of the context."""

    head: int
    """Tokens before the context's."""

    context: Reading
    spans: SpanReader


class QuestionReader:
    """Reads questions and writes answers for one bundle."""

    def __init__(self, bundle: Path) -> None:
        """Load tokenizer and limits. Raises ValueError where the bundle is damaged."""
        self._manifest = load_manifest(bundle, verify=False)
        self._codec = TextCodec(bundle, self._manifest.special_tokens)

    async def read(self, question: str, context: str) -> Question:
        """Cut a context into windows."""
        special, limits = self._codec.special, self._manifest.limits
        asked = await read_freely(question, Lines.NONE, self._codec)
        head = np.concatenate([[special["<qa>"]], asked.ids, [special["<sep>"]]])
        reading = await read_freely(context, Lines.NONE, self._codec)
        windows = make_windows(len(reading.ids), limits.qa_window_tokens - len(head))
        return Question(
            windows=[np.concatenate([head, reading.ids[window.start : window.end]]) for window in windows],
            head=len(head),
            context=reading,
            spans=SpanReader(
                windows=windows, crf=self._manifest.crf, max_tokens=limits.max_answer_tokens, count=SPANS_KEPT
            ),
        )

    def answer(self, question: Question, emissions: Sequence[np.ndarray]) -> dict[str, Any]:
        """The body that `POST /v1/qa` answers with, from the tag scores [S,3] of every window."""
        merged = MergedAnswers()
        for index, emissions_S3 in enumerate(emissions):
            add_window(merged, question.spans.read(index, emissions_S3[question.head :]), question.context)
        return asdict(best_answers(merged, question.context, 1, 0.0))
