"""Batches: a pure function of the step.

A step's rows come from generators seeded with (seed, step), so the position in the data is the step's number and
nothing else: a resumed run reads on where it stopped, and any number of worker processes builds the same batches.

    rows of a step   | pretraining | instructions | questions | summaries |     one source matrix, one encoder pass
    decoders         | generative: continuation    | spans     | pointer   |
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from model.cross_entropy import IGNORE
from model.tokenizer import BOS, EOS, GENERATION, MASK, PAD, SPECIAL_TOKENS, SUMMARY
from model.tokenizer import QA as QA_TOKEN
from training.config import Recipe
from training.data.mixture import Mixture
from training.data.shards import INSTRUCTION, QA, TEXT, Shard, read_shards
from training.data.shards import SUMMARY as SUMMARIES

ROUTE_GENERATION, ROUTE_QA, ROUTE_SUMMARY = range(3)
SHORT_PROMPT = 64
"""Tokens up to which a text to continue may be routed: nothing tells a long one from a text to summarise."""


class Batch(NamedTuple):
    """One step's tensors, int32 but for the labels."""

    source_BS: torch.Tensor
    lengths_B: torch.Tensor
    route_B: torch.Tensor
    """0 generation, 1 question answering, 2 summary; IGNORE where the task token stands in the row."""
    masked_PM: torch.Tensor
    """Positions of the masked tokens of the pretraining rows."""
    masked_labels_PM: torch.Tensor
    continuation_GT: torch.Tensor
    """Targets of pretraining and instruction rows, IGNORE behind their ends."""
    context_Q2: torch.Tensor
    """Where a question's context begins and ends."""
    answer_Q2: torch.Tensor
    """Where the answer begins and ends; -1, -1 where there is none."""
    summary_UT: torch.Tensor
    tokens: int
    """Source and target tokens, padding not counted."""

    def to(self, device: torch.device) -> Batch:
        """The same on another device, copied while it computes."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in self._fields if name != "tokens"}
        return self._replace(**moved)


class TextWindows:
    """All plain text as windows of one size, in a new order and with new borders every epoch."""

    def __init__(self, shards: list[Shard], window: int, seed: int) -> None:
        self.shards = [shard for shard in shards if len(shard.tokens) >= 2 * window]
        if not self.shards:
            raise ValueError(f"the prepared text is too short for windows of {window} tokens")
        self.window, self.seed = window, seed
        self.counts = [len(shard.tokens) // window - 1 for shard in self.shards]
        self.ends = np.cumsum(self.counts)
        self.epoch = -1

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> np.ndarray:
        """Window `index`, counted over all epochs: int64 [window]."""
        epoch, place = divmod(index, len(self))
        if epoch != self.epoch:
            chance = np.random.default_rng([self.seed, epoch])
            self.order, self.shift, self.epoch = chance.permutation(len(self)), int(chance.integers(self.window)), epoch
        number = int(self.order[place])
        shard = int(np.searchsorted(self.ends, number, side="right"))
        within = number - int(self.ends[shard - 1] if shard else 0)
        start = self.shift + within * self.window
        return self.shards[shard].tokens[start : start + self.window].astype(np.int64)


class Batches(Dataset[Batch]):
    """The batch of every step.

    Raises ValueError where the data lack what the recipe weights, or have questions too long for its rows.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.batch, self.objectives = recipe, recipe.batch, recipe.objectives
        root, seed = recipe.data.folder, recipe.data.seed
        text = read_shards(root, TEXT)
        self.vocabulary = text[0].info.vocabulary
        self.text = TextWindows(text, self.batch.source_tokens - 1 + self.batch.target_tokens, seed)
        self.long_text = (
            TextWindows(text, recipe.long.source_tokens - 1 + recipe.long.target_tokens, seed + 1)
            if recipe.long.every
            else None
        )
        mixture = recipe.mixture
        steps = (mixture.begin, mixture.end)
        self.qa = Mixture(read_shards(root, QA), mixture.qa_early, mixture.qa_late, steps)
        self._check_questions()
        self.summary = Mixture(read_shards(root, SUMMARIES), mixture.summary_early, mixture.summary_late, steps)
        self.instruction = Mixture(read_shards(root, INSTRUCTION), mixture.instruction, mixture.instruction, steps)

    def _check_questions(self) -> None:
        """Before the first step: a process that builds batches could only fail in the middle of a run."""
        width = self.batch.source_tokens
        for shard in itertools.chain(*self.qa.groups):
            longest = int(shard.rows["length"].max()) + 1
            if longest > width:
                raise ValueError(
                    f"{shard.info.name} has questions of up to {longest} tokens with their context, but "
                    f"batch.source_tokens is {width}: raise it, or prepare the data with --qa-window {width}"
                )

    def is_long(self, step: int) -> bool:
        """Whether a step has few long rows in place of the mixture."""
        every = self.recipe.long.every
        return bool(every) and step % every == every - 1

    def __getitem__(self, step: int) -> Batch:
        chance = np.random.default_rng([self.recipe.data.seed, step, 0x7121])
        return self.long_batch(step, chance) if self.is_long(step) else self.mixed_batch(step, chance)

    def mixed_batch(self, step: int, chance: np.random.Generator) -> Batch:
        """Rows of every task."""
        sizes = self.batch
        rows = _Rows(sizes.rows, sizes.source_tokens)
        windows = [self.text[step * sizes.pretraining_rows + row] for row in range(sizes.pretraining_rows)]
        masked, labels, targets = self.add_pretraining(rows, windows, sizes.target_tokens, chance)
        answers = [
            self.add_pair(rows, self.instruction, GENERATION, step, chance) for _ in range(sizes.instruction_rows)
        ]
        contexts, spans = zip(*(self.add_question(rows, step, chance) for _ in range(sizes.qa_rows)), strict=True)
        summaries = [self.add_pair(rows, self.summary, SUMMARY, step, chance) for _ in range(sizes.summary_rows)]
        continuations = _targets(targets + answers, sizes.target_tokens)
        summary_UT = _targets(summaries, sizes.summary_tokens)
        return Batch(
            *rows.tensors(),
            masked,
            labels,
            continuations,
            torch.tensor(contexts, dtype=torch.int32),
            torch.tensor(spans, dtype=torch.int32),
            summary_UT,
            rows.tokens + _count(continuations) + _count(summary_UT),
        )

    def long_batch(self, step: int, chance: np.random.Generator) -> Batch:
        """Pretraining rows only."""
        sizes, text = self.recipe.long, self.long_text
        assert text is not None
        rows = _Rows(sizes.rows, sizes.source_tokens)
        windows = [text[step // sizes.every * sizes.rows + row] for row in range(sizes.rows)]
        masked, labels, targets = self.add_pretraining(rows, windows, sizes.target_tokens, chance)
        none = torch.zeros((0, 2), dtype=torch.int32)
        summaries = torch.zeros((0, self.batch.summary_tokens), dtype=torch.int64)
        continuations = _targets(targets, sizes.target_tokens)
        tokens = rows.tokens + _count(continuations)
        return Batch(*rows.tensors(), masked, labels, continuations, none, none, summaries, tokens)

    def add_pretraining(
        self, rows: _Rows, windows: list[np.ndarray], target_tokens: int, chance: np.random.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, list[np.ndarray]]:
        """Text with masked tokens, and what follows it.

        Returns positions [P,M] and labels [P,M] of the masked tokens, and the continuations.
        """
        room = rows.width - 1
        most = int(self.objectives.mask_fraction * room)
        masked = np.zeros((len(windows), most), dtype=np.int32)
        labels = np.full((len(windows), most), IGNORE, dtype=np.int64)
        targets = []
        for row, window in enumerate(windows):
            length = room
            if chance.random() < self.objectives.short_prompts:
                length = int(np.exp(chance.uniform(np.log(8), np.log(room))))
            source = window[:length].copy()
            targets.append(_until_end(window[length : length + target_tokens]))
            if chance.random() >= self.objectives.unmasked_rows:
                count = int(self.objectives.mask_fraction * length)
                places = np.sort(chance.permutation(length)[:count])
                masked[row, :count] = places + 1
                labels[row, :count] = source[places]
                source[places] = _noise(source[places], self.vocabulary, chance)
            route = ROUTE_GENERATION if length <= SHORT_PROMPT else IGNORE
            rows.add(source, GENERATION, route, drop=self.drops_task_token(chance))
        return torch.from_numpy(masked), torch.from_numpy(labels), targets

    def add_pair(self, rows: _Rows, mixture: Mixture, task: int, step: int, chance: np.random.Generator) -> np.ndarray:
        """A text to summarise or an instruction; returns what is to be written."""
        shard, row = mixture.draw(step, chance)
        middle = row["offset"] + row["source_length"]
        route = ROUTE_SUMMARY if task == SUMMARY else ROUTE_GENERATION
        rows.add(shard.tokens[row["offset"] : middle], task, route, drop=self.drops_task_token(chance))
        return shard.tokens[middle : middle + row["target_length"]].astype(np.int64)

    def add_question(
        self, rows: _Rows, step: int, chance: np.random.Generator
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """A question with its context; returns where context and answer lie in the row."""
        shard, row = self.qa.draw(step, chance)
        source = shard.tokens[row["offset"] : row["offset"] + row["length"]]
        rows.add(source, QA_TOKEN, ROUTE_QA, drop=self.drops_task_token(chance))
        begin, end = int(row["answer_begin"]), int(row["answer_end"])
        answer = (begin + 1, end + 1) if end > 0 else (-1, -1)
        return (int(row["context"]) + 1, len(source) + 1), answer

    def drops_task_token(self, chance: np.random.Generator) -> bool:
        """Whether a row starts with <s>, so that the router has to tell its task."""
        return bool(chance.random() < self.objectives.task_token_dropout)


class _Rows:
    """The source matrix while it fills."""

    def __init__(self, rows: int, width: int) -> None:
        self.ids = np.full((rows, width), PAD, dtype=np.int32)
        self.lengths = np.zeros(rows, dtype=np.int32)
        self.routes = np.full(rows, IGNORE, dtype=np.int64)
        self.width, self.filled = width, 0

    def add(self, source: np.ndarray, task: int, route: int, *, drop: bool) -> None:
        """Fill the next row, cut to the width; the router learns from rows whose task token is dropped."""
        source = source[: self.width - 1]
        row = self.filled
        self.ids[row, 0] = BOS if drop else task
        self.ids[row, 1 : len(source) + 1] = source
        self.lengths[row] = len(source) + 1
        self.routes[row] = route if drop else IGNORE
        self.filled += 1

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        return int(self.lengths.sum())

    def tensors(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sources, lengths, routes."""
        assert self.filled == len(self.ids)
        return torch.from_numpy(self.ids), torch.from_numpy(self.lengths), torch.from_numpy(self.routes)


def _until_end(target: np.ndarray) -> np.ndarray:
    """A continuation up to its document's end."""
    ends = np.flatnonzero(target == EOS)
    return target[: ends[0] + 1] if len(ends) else target


def _noise(tokens: np.ndarray, vocabulary: int, chance: np.random.Generator) -> np.ndarray:
    """BERT's corruption: 80 % masked, 10 % replaced by a random token of the vocabulary, 10 % left."""
    draw = chance.random(len(tokens))
    random = chance.integers(len(SPECIAL_TOKENS), vocabulary, len(tokens))
    return np.where(draw < 0.8, MASK, np.where(draw < 0.9, random, tokens))


def _targets(targets: list[np.ndarray], width: int) -> torch.Tensor:
    """Targets as labels [rows, width]."""
    labels = np.full((len(targets), width), IGNORE, dtype=np.int64)
    for row, target in enumerate(targets):
        labels[row, : min(width, len(target))] = target[:width]
    return torch.from_numpy(labels)


def _count(labels: torch.Tensor) -> int:
    return int((labels != IGNORE).sum())
