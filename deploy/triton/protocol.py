"""What travels between the gateway and the engine: batches of prompts one way, news of their rows the other.

    gateway ── GenerationBatch ──▶ Engine.submit
    gateway ◀── BatchNews, EngineStats ── one call for each batch and step with news

In process these objects are handed over as they are; through Triton, wire.py lays them out as tensors.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


class Task(enum.IntEnum):
    """What a row asks for. The first three are the router's classes, in its order."""

    GENERATION = 0
    QA = 1
    SUMMARY = 2
    AUTO = 3
    """The router decides, on the encoder pass that the chosen decoder then reads."""


class FinishReason(enum.IntEnum):
    """Why a row ended, or that it has not."""

    RUNNING = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    ERROR = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How one row's tokens are chosen. The engine checks the ranges, with its own limits."""

    max_new_tokens: int
    """Tokens of the answer at most; the end token is never part of it."""

    min_new_tokens: int = 0
    """The answer does not end before this many tokens."""

    temperature: float = 1.0
    """0 is greedy."""

    top_k: int = 0
    """Draw from the k likeliest tokens only; 0 keeps all."""

    top_p: float = 1.0
    """Draw from the smallest set of likeliest tokens whose probabilities reach p."""

    repetition_penalty: float = 1.0
    """Scores of tokens that the answer already holds are divided (negative ones multiplied) by this."""

    seed: int = 0
    """Below 2**63. Equal seeds give equal answers, whatever else is in the batch."""

    num_beams: int = 1
    """More than 1: beam search, which is deterministic: temperature, top_k, top_p and seed have no effect."""

    length_penalty: float = 1.0
    """Beams are ranked by their log probability divided by (tokens, the end included) ** length_penalty."""

    no_repeat_ngram: int = 0
    """No sequence of this many tokens occurs twice in an answer; 0 allows all."""


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """What a row is made from."""

    ids: np.ndarray
    """INT64 [S], tokens with their task token."""

    @property
    def cost(self) -> int:
        """Positions that the encoder computes for it, padding aside."""
        return len(self.ids)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Row:
    """One prompt."""

    row_id: int
    """Chosen by the client, unique among the rows in flight."""

    source: Source
    sampling: Sampling
    stream: bool = False
    """Tokens are sent as they come, else all together at the end (as beams always are)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class GenerationBatch:
    """Prompts of one task that the gateway sends together.

    The engine encodes them together, padded to the longest, and never with those of another batch. Where slots or
    `prefill_tokens` do not last for all of them, the first rows start first.
    """

    task: Task
    rows: tuple[Row, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowTimings:
    """Where a finished row's time went, seconds."""

    queue_s: float
    prefill_s: float
    decode_s: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowUpdate:
    """News of one row."""

    row_id: int
    tokens: np.ndarray
    """INT32, those not sent before; never the end token."""

    finish_reason: FinishReason
    task: Task
    """The row's task; AUTO only where a row ended before it was routed."""

    timings: RowTimings | None = None
    """With the last update of a row."""

    route: np.ndarray | None = None
    """FP32 [3], P(generation, qa, summary): with the first update of an AUTO row."""

    emissions: np.ndarray | None = None
    """FP32 [S,3], scores of the tags O, B, I: rows whose task is QA, which end at once with STOP."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefillTime:
    """What it took to encode some rows of a batch together and to fill their caches."""

    rows: int
    tokens: int
    """Positions that each row was padded to."""

    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class BatchNews:
    """What a batch's sink is told after a step."""

    updates: list[RowUpdate]
    prefills: tuple[PrefillTime, ...] = ()
    """Of the batch's rows that were started in this step."""


Sink = Callable[[BatchNews], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTotals:
    """Sums over all steps of one decoder since the engine's start; the difference of two is what ran between them."""

    steps: int = 0
    rows: int = 0
    """Sequences that the steps decoded, each beam one."""

    cached_tokens: int = 0
    """Positions of sources and answers that those sequences held in the cache."""

    seconds: float = 0.0
    """In the decoder's graph and the choice of tokens."""

    def __add__(self, other: StepTotals) -> StepTotals:
        """Both together."""
        return StepTotals(
            steps=self.steps + other.steps,
            rows=self.rows + other.rows,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            seconds=self.seconds + other.seconds,
        )

    def __sub__(self, earlier: StepTotals) -> StepTotals:
        """What ran since `earlier`."""
        return StepTotals(
            steps=self.steps - earlier.steps,
            rows=self.rows - earlier.rows,
            cached_tokens=self.cached_tokens - earlier.cached_tokens,
            seconds=self.seconds - earlier.seconds,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStats:
    """Occupancy of the key-value cache, the queue in front of it, and what has been decoded so far."""

    slots_used: int
    slots_total: int
    waiting_rows: int
    generation_steps: StepTotals = StepTotals()
    summary_steps: StepTotals = StepTotals()
