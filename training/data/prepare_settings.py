"""What every worker that prepares data needs to know, and what shards depend on beside their file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from model.tokenizer import TOKENIZER_FILES
from training.data.catalogue import find_source
from training.data.readers import read_questions


@dataclass(frozen=True, kw_only=True, slots=True)
class PrepareSettings:
    """What every worker needs to know."""

    output: Path
    tokenizer: Path
    qa_window: int = 384
    """Tokens of a question answering row at most, task token and question included."""
    held_out: frozenset[str] = frozenset()
    """SQuAD articles never trained on."""
    held_out_questions: frozenset[str] = frozenset()
    """Ids of their questions, by which translations of them are recognised."""
    held_out_texts: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of what shards depend on beside their file: tokenizer, window, and what is held out."""
        parts = (str(self.qa_window), *sorted(self.held_out_questions), *self.held_out_texts)
        tokens = (self.tokenizer / TOKENIZER_FILES[0]).read_bytes()
        return hashlib.sha256(tokens + "\n".join(parts).encode()).hexdigest()


def with_held_out_squad(settings: PrepareSettings) -> PrepareSettings:
    """The settings, with what the development file holds."""
    path = settings.output / "dev" / "squad.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: prepare a folder with {find_source('squad').pattern} first")
    questions = list(read_questions(path))
    return PrepareSettings(
        output=settings.output,
        tokenizer=settings.tokenizer,
        qa_window=settings.qa_window,
        held_out=frozenset(question.document for question in questions),
        held_out_questions=frozenset(question.identifier for question in questions),
        held_out_texts=tuple(sorted({question.context for question in questions})),
    )
