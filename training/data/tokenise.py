"""From documents, questions and pairs to token ids and rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Encoding, Tokenizer

from model.tokenizer import EOS, SEP, batches
from training.data.readers import Pair, Question

BATCH_CHARACTERS = 400_000
MAX_SOURCE, MAX_TARGET = 2_048, 512


@dataclass(slots=True)
class ShardBuilder:
    """Collects examples until they are written."""

    dtype: np.dtype
    tokens: list[np.ndarray] = field(default_factory=list)
    rows: list[tuple[int, ...]] = field(default_factory=list)
    size: int = 0

    def add(self, ids: list[int], *fields: int) -> None:
        """Append one example of these token ids and the row's fields that follow its offset."""
        self.rows.append((self.size, *fields))
        self.tokens.append(np.array(ids, dtype=np.uint16))
        self.size += len(ids)

    def as_rows(self) -> np.ndarray:
        """The rows so far."""
        return np.array(self.rows, dtype=self.dtype)


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[np.ndarray]:
    """Token ids of documents, each ended by </s>."""
    for batch in batches(texts, BATCH_CHARACTERS):
        for encoding in tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            yield np.array([*encoding.ids, EOS], dtype=np.uint16)


def encode_pairs(tokenizer: Tokenizer, pairs: Iterable[Pair], builder: ShardBuilder) -> None:
    """Add each pair with each of its targets; a target ends with </s>."""
    pairs = list(pairs)
    for start in range(0, len(pairs), 1_000):
        part = pairs[start : start + 1_000]
        sources = tokenizer.encode_batch_fast([pair.source for pair in part], add_special_tokens=False)
        for pair, source in zip(part, sources, strict=True):
            for target in tokenizer.encode_batch_fast(list(pair.targets), add_special_tokens=False):
                source_ids = source.ids[:MAX_SOURCE]
                target_ids = [*target.ids[: MAX_TARGET - 1], EOS]
                builder.add(source_ids + target_ids, len(source_ids), len(target_ids))


def encode_questions(tokenizer: Tokenizer, questions: Iterable[Question], builder: ShardBuilder, window: int) -> None:
    """Add each question with the windows of its context that hold the answer, and one that does not.

    Rows hold `question <sep> context`, at most `window` - 1 tokens: the task's token comes in front. A context is
    encoded once for the questions that follow each other on it.
    """
    context, encoding = None, None
    for question in questions:
        if question.context != context:
            context, encoding = question.context, tokenizer.encode(question.context, add_special_tokens=False)
        assert encoding is not None
        ids = tokenizer.encode(question.question, add_special_tokens=False).ids
        room = window - 2 - len(ids)
        if room < window // 4:
            continue
        span = answer_tokens(question, encoding)
        if question.answers and span is None:
            continue
        for begin, end in training_windows(len(encoding.ids), room, span):
            inside = span is not None and begin <= span[0] and span[1] <= end
            source = [*ids, SEP, *encoding.ids[begin:end]]
            head = len(ids) + 1
            first, last = (head + span[0] - begin, head + span[1] - begin) if inside and span else (-1, -1)
            builder.add(source, len(source), head, first, last)


def training_windows(length: int, room: int, span: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Windows of a context to train on: all that hold the answer, and the first that does not."""
    windows = list(context_windows(length, room))
    if span is None:
        return windows[:1]
    with_answer = [w for w in windows if w[0] <= span[0] and span[1] <= w[1]]
    without = [w for w in windows if w[1] <= span[0] or span[1] <= w[0]]
    return with_answer + without[:1]


def context_windows(length: int, room: int) -> Iterator[tuple[int, int]]:
    """Windows of at most `room` tokens over a context, each starting half a window after the last."""
    begin = 0
    while True:
        end = min(length, begin + room)
        yield begin, end
        if end == length:
            return
        begin += max(1, room // 2)


def answer_tokens(question: Question, context: Encoding) -> tuple[int, int] | None:
    """First and one past the last token of the answer, or None where no token touches it."""
    answer = question.answer
    if answer is None:
        return None
    touched = [i for i, (start, end) in enumerate(context.offsets) if start < answer.end and end > answer.start]
    return (touched[0], touched[-1] + 1) if touched else None
