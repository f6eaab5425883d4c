"""Questions whose sources have a given number of tokens: bodies of `POST /v1/qa`.

A source is what the model reads: task token, question, separator, context. Contexts are made of words that are one
token each, so that their lengths need no trying.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from deploy.benchmark.workload import PARAGRAPHS
from deploy.triton.manifest import load_manifest

QUESTION = "Who built it?"
SPECIAL_TOKENS = 2
"""Of a source: the task's, and the separator between question and context."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SizedQuestions:
    """Makes questions for one bundle's tokenizer."""

    words: tuple[str, ...]
    """One token each, at the beginning of a text and behind a space."""

    shortest: int
    """Tokens of a source with a context of one word."""

    longest: int
    """Tokens of a source that is still one window."""

    def body(self, tokens: int, number: int = 0) -> bytes:
        """A question of so many tokens; another `number` gives another text.

        Raises ValueError for a length that no source of one window has.
        """
        if not self.shortest <= tokens <= self.longest:
            raise ValueError(f"a source has {self.shortest} to {self.longest} tokens, not {tokens}")
        count = tokens - self.shortest + 1
        context = " ".join(self.words[(number + place) % len(self.words)] for place in range(count))
        return json.dumps({"question": QUESTION, "context": context}).encode()

    def bodies(self, tokens: Iterable[int]) -> list[bytes]:
        """A question for each number of tokens."""
        return [self.body(int(each), number) for number, each in enumerate(tokens)]

    def fitted(self, tokens: np.ndarray, cap: int) -> np.ndarray:
        """Lengths that sources can have, `cap` at most: INT [R]."""
        return tokens.clip(self.shortest, min(cap, self.longest))


def sized_questions(bundle: Path) -> SizedQuestions:
    """Questions for a bundle. Raises BundleError where it is damaged, ValueError where no word is one token."""
    manifest = load_manifest(bundle, verify=False)
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))

    def size(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    words = [word for paragraph in PARAGRAPHS for word in paragraph.split()]
    single = tuple(word for word in words if size(word) == size(f" {word}") == 1)
    if not single:
        raise ValueError(f"{bundle} has no word of the built-in paragraphs as one token: its vocabulary is too small")
    return SizedQuestions(
        words=single,
        shortest=SPECIAL_TOKENS + size(QUESTION) + 1,
        longest=manifest.limits.qa_window_tokens,
    )
