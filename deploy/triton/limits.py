"""What the engine accepts: its settings, and the check of every batch before it is queued.

One bad id would fail all the rows of its prefill, so nothing unchecked gets that far.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np

from .manifest import Manifest
from .protocol import GenerationBatch, Row, Sampling, Task

DEVICES = ("cpu", "cuda")
LARGEST_SEED = 2**63 - 1
LARGEST_LENGTH_PENALTY = 10.0
SMALLEST_REPETITION_PENALTY, LARGEST_REPETITION_PENALTY = 0.01, 10.0
"""Scores are divided by it: much further down they would leave float32's range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSettings:
    """How one engine uses its machine. In config.pbtxt these are `parameters` of the same names."""

    slots: int = 32
    """Sequences decoded at once; each beam takes a slot."""

    max_source_tokens: int = 2048
    """Longest source; the bundle's limit where that is lower."""

    max_target_tokens: int = 512
    """Longest answer; the bundle's limit where that is lower."""

    threads: int = 0
    """Threads of one operator; 0 is one for each physical core."""

    device: str = "cpu"
    """cpu, or cuda: the first CUDA device, for bundles in fp16."""

    prefill_tokens: int = 2048
    """Source tokens (padding included) that are taken to be encoded before others are. A longer source goes alone."""

    warm_positions: int = 256
    """Cache positions a slot whose memory is taken at start and kept; the rest comes and goes with long rows."""

    gap_steps: float = 3.0
    """Time between two tokens of a row while other rows' sources are encoded, in decode steps without that."""

    verify: bool = True
    """Compare the bundle's files with their digests before they are loaded."""

    def __post_init__(self) -> None:
        for name in ("slots", "max_source_tokens", "max_target_tokens", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")
        if self.device not in DEVICES:
            raise ValueError(f"device must be one of {', '.join(DEVICES)}, got {self.device!r}")
        if not self.gap_steps >= 1:
            raise ValueError(f"gap_steps must be 1 or more, got {self.gap_steps}")
        for name in ("threads", "warm_positions"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> EngineSettings:
        """Settings from strings; names that are not settings are left to others. Raises ValueError on bad values."""
        given = {each.name: parameters[each.name] for each in fields(cls) if each.name in parameters}
        verify = _read_bool("verify", given.pop("verify", "true"))
        gap_steps = _read_real("gap_steps", given.pop("gap_steps", str(cls().gap_steps)))
        device = given.pop("device", cls().device)
        numbers = {name: _read_int(name, text) for name, text in given.items()}
        return cls(**numbers, device=device, gap_steps=gap_steps, verify=verify)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowLimits:
    """Bounds that every row must keep."""

    vocabulary: int
    max_source_tokens: int
    max_target_tokens: int
    max_beams: int

    @classmethod
    def of(cls, manifest: Manifest, settings: EngineSettings) -> RowLimits:
        """The stricter of what the bundle and the settings allow."""
        return cls(
            vocabulary=int(manifest.config["vocab_size"]),
            max_source_tokens=min(manifest.limits.max_source_tokens, settings.max_source_tokens),
            max_target_tokens=min(manifest.limits.max_target_tokens, settings.max_target_tokens),
            max_beams=min(manifest.limits.max_beams, settings.slots),
        )


def check_batch(batch: GenerationBatch, limits: RowLimits) -> None:
    """Raises ValueError naming the row, the value, the limit and the fix."""
    if not isinstance(batch.task, Task):
        raise ValueError(f"task is {batch.task!r}: choose a Task")
    if not batch.rows:
        raise ValueError("the batch has no rows: send at least one")
    seen: set[int] = set()
    for row in batch.rows:
        if row.row_id in seen:
            raise ValueError(f"row {row.row_id} occurs twice in the batch: give every row an id of its own")
        seen.add(row.row_id)
        try:
            _check_source(row, limits)
            _check_sampling(row.sampling, limits)
        except ValueError as error:
            raise ValueError(f"row {row.row_id}: {error}") from None


def _check_source(row: Row, limits: RowLimits) -> None:
    ids = row.source.ids
    if not isinstance(ids, np.ndarray) or ids.ndim != 1 or ids.dtype != np.int64:
        raise ValueError("input_ids must be a one-dimensional array of INT64")
    if not 1 <= len(ids) <= limits.max_source_tokens:
        raise ValueError(f"input_ids holds {len(ids)} tokens: send 1 to {limits.max_source_tokens}")
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= limits.vocabulary:
        bad = lowest if lowest < 0 else highest
        raise ValueError(f"input_ids holds the id {bad}: ids are 0 to {limits.vocabulary - 1}")


def _check_sampling(sampling: Sampling, limits: RowLimits) -> None:
    _check_integer("max_new_tokens", sampling.max_new_tokens, 1, limits.max_target_tokens)
    _check_integer("min_new_tokens", sampling.min_new_tokens, 0, sampling.max_new_tokens)
    _check_integer("top_k", sampling.top_k, 0, limits.vocabulary)
    _check_integer("seed", sampling.seed, 0, LARGEST_SEED)
    _check_integer("num_beams", sampling.num_beams, 1, limits.max_beams)
    _check_integer("no_repeat_ngram", sampling.no_repeat_ngram, 0, limits.max_target_tokens)
    _check_real("temperature", sampling.temperature, 0.0, math.inf)
    _check_real("top_p", sampling.top_p, 0.0, 1.0, above=True)
    _check_real(
        "repetition_penalty",
        sampling.repetition_penalty,
        SMALLEST_REPETITION_PENALTY,
        LARGEST_REPETITION_PENALTY,
    )
    _check_real("length_penalty", sampling.length_penalty, -LARGEST_LENGTH_PENALTY, LARGEST_LENGTH_PENALTY)


def _check_integer(name: str, value: object, lowest: int, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise ValueError(f"{name} is {value!r}: choose an integer from {lowest} to {highest}")


def _check_real(name: str, value: float, lowest: float, highest: float, *, above: bool = False) -> None:
    inside = isinstance(value, int | float) and math.isfinite(value) and lowest <= value <= highest
    if not inside or (above and value == lowest):
        bound = f"above {lowest:g}" if above else f"of {lowest:g} or more"
        most = "" if highest == math.inf else f", {highest:g} at most"
        raise ValueError(f"{name} is {value!r}: choose a finite number {bound}{most}")


def _read_int(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError(f"parameter {name} is {text!r}: write an integer") from None


def _read_real(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"parameter {name} is {text!r}: write a number") from None


def _read_bool(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"parameter {name} is {text!r}: write true or false")
    return text == "true"
