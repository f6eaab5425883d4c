"""Texts on which an export is compared with PyTorch, and the token ids that the service would make of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

TASKS = ("generation", "qa", "summary")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One request: a prompt, a question with its context, or a text to summarise."""

    task: str
    input: str
    context: str = ""

    def __post_init__(self) -> None:
        if self.task not in TASKS:
            raise ValueError(f"a sample's task must be one of {', '.join(TASKS)}, got {self.task!r}")
        if not self.input or (self.task == "qa") != bool(self.context):
            raise ValueError(f"a sample needs an input, and a context for qa alone; got {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A sample as a source sequence."""

    task: str
    ids: np.ndarray
    """INT64 [S]."""

    context: slice
    """Positions of the context's tokens; empty outside qa."""


def load_samples(path: Path) -> list[Sample]:
    """Samples from JSON lines with `task`, `input` and, for qa, `context`. Raises ValueError naming the line."""
    samples = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            samples.append(Sample(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from None
    if not samples:
        raise ValueError(f"{path} holds no samples: write one JSON object a line")
    return samples


def encode_samples(folder: Path, samples: Iterable[Sample], *, limit: int) -> list[Source]:
    """Source sequences of at most `limit` tokens: task token, input and, for qa, `<sep>` and context."""
    from model.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(folder)
    separator = tokenizer.token_to_id("<sep>")
    sources = []
    for sample in samples:
        head = [tokenizer.token_to_id(f"<{sample.task}>"), *tokenizer.encode(sample.input).ids]
        if sample.context:
            head.append(separator)
        context = tokenizer.encode(sample.context).ids if sample.context else []
        ids = np.array([*head, *context][:limit], np.int64)
        sources.append(Source(task=sample.task, ids=ids, context=slice(min(len(head), limit), len(ids))))
    return sources


RIVER = (
    "The river rises in the northern hills and runs for two hundred kilometres to the sea. In 1871 a stone bridge was "
    "built near the old mill, and the town grew around it. Today about forty thousand people live there, most of them "
    "employed in the harbour, in schools or in the paper works."
)
LIBRARY = (
    "Anna: Did you return the books to the library? Ben: Not yet, it was closed yesterday because of the storm. Anna: "
    "They are due on Friday. Ben: I will go tomorrow after work and bring yours as well. Anna: Thank you, they lie on "
    "the kitchen table."
)
LIGHT = (
    "光在真空中的速度约为每秒三十万公里。天文学家用光年来表示恒星之间的距离, 一光年大约是九万五千亿公里。"
    "离太阳最近的恒星是比邻星, 距离约为四光年。"
)
DEFAULT_SAMPLES = (
    Sample(task="generation", input="Once upon a time"),
    Sample(task="generation", input="Give three reasons to sleep well."),
    Sample(task="generation", input="The capital of France is"),
    Sample(task="generation", input=RIVER),
    Sample(task="generation", input="写一句关于春天的话。"),
    Sample(task="qa", input="When was the bridge built?", context=RIVER),
    Sample(task="qa", input="Where does the river rise?", context=RIVER),
    Sample(task="qa", input="Why was the library closed?", context=LIBRARY),
    Sample(task="qa", input="离太阳最近的恒星是什么?", context=LIGHT),
    Sample(task="qa", input="How many people live in the town?", context=f"{LIBRARY} {RIVER}"),
    Sample(task="summary", input=LIBRARY),
    Sample(task="summary", input=RIVER),
    Sample(task="summary", input=f"{RIVER} {LIBRARY} {RIVER}"),
    Sample(task="summary", input=LIGHT),
)
"""Compared where no other samples are given: both languages, from a few tokens to several blocks of the recurrence."""
