"""The tensors of the `generator` model: the table that config.pbtxt is generated from, and both directions.

    GenerationBatch ── encode_batch ──▶ tensors ── decode_batch ──▶ Engine
    BatchNews, EngineStats ◀── decode_news ── tensors ◀── encode_news ── Engine

Rows of any length are laid end to end (`input_ids` beside `input_lengths`): no padding travels. Tensors that would be
empty are left out.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from .protocol import (
    BatchNews,
    EngineStats,
    FinishReason,
    GenerationBatch,
    PrefillTime,
    Row,
    RowTimings,
    RowUpdate,
    Sampling,
    Source,
    StepTotals,
    Task,
)

Tensors = dict[str, np.ndarray]
Kind = TypeVar("Kind", bound=enum.IntEnum)


class RequestKind(enum.IntEnum):
    """What a request to the `generator` model asks for."""

    BATCH = 0
    """Answered by updates until every row has finished."""

    CANCEL = 1
    """End the rows in `cancel_rows`; answered once, with statistics."""

    STATS = 2
    """Answered once, with statistics."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One tensor of the `generator` model."""

    name: str
    datatype: str
    """Triton's name without the prefix: INT64, FP32, ..."""

    dims: tuple[int, ...]
    """-1 is any size."""

    optional: bool = True

    @property
    def dtype(self) -> np.dtype:
        """The numpy type."""
        return np.dtype(_NUMPY_TYPES[self.datatype])


_NUMPY_TYPES = {"BOOL": np.bool_, "INT32": np.int32, "INT64": np.int64, "FP32": np.float32, "FP64": np.float64}
_INTEGERS = ("max_new_tokens", "min_new_tokens", "top_k", "seed", "num_beams", "no_repeat_ngram")
_REALS = ("temperature", "top_p", "repetition_penalty", "length_penalty")
"""Columns of `sampling_integers` and `sampling_reals`."""

REQUEST_TENSORS = (
    TensorSpec(name="request_kind", datatype="INT32", dims=(1,), optional=False),
    TensorSpec(name="cancel_rows", datatype="INT64", dims=(-1,)),
    TensorSpec(name="task", datatype="INT32", dims=(1,)),
    TensorSpec(name="row_ids", datatype="INT64", dims=(-1,)),
    TensorSpec(name="input_ids", datatype="INT64", dims=(-1,)),
    TensorSpec(name="input_lengths", datatype="INT32", dims=(-1,)),
    TensorSpec(name="stream", datatype="BOOL", dims=(-1,)),
    TensorSpec(name="sampling_integers", datatype="INT64", dims=(-1, len(_INTEGERS))),
    TensorSpec(name="sampling_reals", datatype="FP64", dims=(-1, len(_REALS))),
)
"""Inputs. All but the first depend on its value."""

RESPONSE_TENSORS = (
    TensorSpec(name="stats", datatype="INT32", dims=(3,), optional=False),
    TensorSpec(name="step_totals", datatype="FP64", dims=(2, 4), optional=False),
    TensorSpec(name="prefills", datatype="FP64", dims=(-1, 3)),
    TensorSpec(name="updated_rows", datatype="INT64", dims=(-1,)),
    TensorSpec(name="tokens", datatype="INT32", dims=(-1,)),
    TensorSpec(name="token_counts", datatype="INT32", dims=(-1,)),
    TensorSpec(name="finish_reasons", datatype="INT32", dims=(-1,)),
    TensorSpec(name="tasks", datatype="INT32", dims=(-1,)),
    TensorSpec(name="timings", datatype="FP64", dims=(-1, 3)),
    TensorSpec(name="routes", datatype="FP32", dims=(-1, 3)),
    TensorSpec(name="emissions", datatype="FP32", dims=(-1, 3)),
    TensorSpec(name="emission_counts", datatype="INT32", dims=(-1,)),
)
"""Outputs. A row without timings or route holds NaN there; one without emissions counts 0.

The rows of `step_totals` are generation and summary, its columns the fields of StepTotals; those of `prefills` are the
fields of PrefillTime. Whole numbers in them are exact up to 2**53.
"""

_REQUEST = {spec.name: spec for spec in REQUEST_TENSORS}


def encode_batch(batch: GenerationBatch) -> Tensors:
    """The tensors of a BATCH request."""
    samplings = [row.sampling for row in batch.rows]
    return {
        "request_kind": np.array([RequestKind.BATCH], np.int32),
        "task": np.array([batch.task], np.int32),
        "row_ids": np.array([row.row_id for row in batch.rows], np.int64),
        "input_ids": _end_to_end([row.source.ids for row in batch.rows], np.int64),
        "input_lengths": np.array([len(row.source.ids) for row in batch.rows], np.int32),
        "stream": np.array([row.stream for row in batch.rows], np.bool_),
        "sampling_integers": _columns(samplings, _INTEGERS, np.int64),
        "sampling_reals": _columns(samplings, _REALS, np.float64),
    }


def encode_cancel(row_ids: Iterable[int]) -> Tensors:
    """The tensors of a CANCEL request."""
    return {
        "request_kind": np.array([RequestKind.CANCEL], np.int32),
        "cancel_rows": np.array(list(row_ids), np.int64),
    }


def encode_stats_query() -> Tensors:
    """The tensors of a STATS request."""
    return {"request_kind": np.array([RequestKind.STATS], np.int32)}


def decode_kind(tensors: Mapping[str, np.ndarray]) -> RequestKind:
    """What a request asks for. Raises ValueError where it does not say so."""
    return _enum(RequestKind, _tensor(tensors, "request_kind"), "request_kind")


def decode_cancel(tensors: Mapping[str, np.ndarray]) -> list[int]:
    """The rows of a CANCEL request. Raises ValueError where they are missing or of the wrong type."""
    return _tensor(tensors, "cancel_rows").tolist()


def decode_batch(tensors: Mapping[str, np.ndarray]) -> GenerationBatch:
    """The batch of a BATCH request. Raises ValueError where tensors are missing or do not fit together."""
    task = _enum(Task, _tensor(tensors, "task"), "task")
    row_ids, lengths = _tensor(tensors, "row_ids"), _tensor(tensors, "input_lengths")
    ids, stream = _tensor(tensors, "input_ids"), _tensor(tensors, "stream")
    integers, reals = _tensor(tensors, "sampling_integers"), _tensor(tensors, "sampling_reals")
    count = len(row_ids)
    for name, tensor in (("input_lengths", lengths), ("stream", stream), ("sampling_integers", integers),
                         ("sampling_reals", reals)):  # fmt: skip
        if len(tensor) != count:
            raise ValueError(f"{name} has {len(tensor)} rows, row_ids has {count}: send one each")
    if (lengths < 0).any() or int(lengths.sum()) != len(ids):
        raise ValueError(f"input_lengths add up to {int(lengths.sum())}, input_ids holds {len(ids)} tokens")
    rows = tuple(
        Row(
            row_id=row_id,
            source=Source(source_ids),
            stream=streamed,
            sampling=Sampling(**dict(zip(_INTEGERS, whole, strict=True)), **dict(zip(_REALS, real, strict=True))),
        )
        for row_id, source_ids, streamed, whole, real in zip(
            row_ids.tolist(), _parts(ids, lengths), stream.tolist(), integers.tolist(), reals.tolist(), strict=True
        )
    )
    return GenerationBatch(task=task, rows=rows)


def encode_news(news: BatchNews, stats: EngineStats) -> Tensors:
    """The tensors of one response; without news only the statistics."""
    tensors = _encode_stats(stats)
    if news.prefills:
        tensors["prefills"] = np.array([(each.rows, each.tokens, each.seconds) for each in news.prefills], np.float64)
    if news.updates:
        tensors |= _encode_updates(news.updates)
    return tensors


def decode_news(tensors: Mapping[str, np.ndarray]) -> tuple[BatchNews, EngineStats]:
    """What `encode_news` encoded."""
    prefills = tuple(
        PrefillTime(rows=int(rows), tokens=int(tokens), seconds=seconds)
        for rows, tokens, seconds in (tensors["prefills"].tolist() if "prefills" in tensors else ())
    )
    updates = _decode_updates(tensors) if "updated_rows" in tensors else []
    return BatchNews(updates=updates, prefills=prefills), _decode_stats(tensors)


def _encode_stats(stats: EngineStats) -> Tensors:
    totals = [
        (each.steps, each.rows, each.cached_tokens, each.seconds)
        for each in (stats.generation_steps, stats.summary_steps)
    ]
    return {
        "stats": np.array([stats.slots_used, stats.slots_total, stats.waiting_rows], np.int32),
        "step_totals": np.array(totals, np.float64),
    }


def _decode_stats(tensors: Mapping[str, np.ndarray]) -> EngineStats:
    used, total, waiting = tensors["stats"].tolist()
    generation, summary = (
        StepTotals(steps=int(steps), rows=int(rows), cached_tokens=int(cached), seconds=seconds)
        for steps, rows, cached, seconds in tensors["step_totals"].tolist()
    )
    return EngineStats(
        slots_used=used,
        slots_total=total,
        waiting_rows=waiting,
        generation_steps=generation,
        summary_steps=summary,
    )


def _encode_updates(updates: Sequence[RowUpdate]) -> Tensors:
    tensors: Tensors = {}
    tensors["updated_rows"] = np.array([each.row_id for each in updates], np.int64)
    tensors["finish_reasons"] = np.array([each.finish_reason for each in updates], np.int32)
    tensors["tasks"] = np.array([each.task for each in updates], np.int32)
    tensors["token_counts"] = np.array([len(each.tokens) for each in updates], np.int32)
    if tensors["token_counts"].any():
        tensors["tokens"] = _end_to_end([each.tokens for each in updates], np.int32)
    if any(each.timings is not None for each in updates):
        tensors["timings"] = np.array([_timing_values(each.timings) for each in updates], np.float64)
    if any(each.route is not None for each in updates):
        unrouted = np.full(3, np.nan, np.float32)
        tensors["routes"] = np.stack([unrouted if each.route is None else each.route for each in updates])
    emissions = [each.emissions for each in updates if each.emissions is not None]
    if emissions:
        tensors["emissions"] = np.concatenate(emissions).astype(np.float32, copy=False)
        counts = [0 if each.emissions is None else len(each.emissions) for each in updates]
        tensors["emission_counts"] = np.array(counts, np.int32)
    return tensors


def _decode_updates(tensors: Mapping[str, np.ndarray]) -> list[RowUpdate]:
    rows = tensors["updated_rows"]
    nothing = np.zeros(len(rows), np.int32)
    tokens = _parts(tensors.get("tokens", np.empty(0, np.int32)), tensors["token_counts"])
    emissions = _parts(tensors.get("emissions", np.empty((0, 3), np.float32)), tensors.get("emission_counts", nothing))
    unknown = np.full((len(rows), 3), np.nan)
    timings, routes = tensors.get("timings", unknown), tensors.get("routes", unknown)
    return [
        RowUpdate(
            row_id=row_id,
            tokens=tokens[index],
            finish_reason=FinishReason(reason),
            task=Task(task),
            timings=_decode_timings(timings[index]),
            route=None if np.isnan(routes[index][0]) else routes[index],
            emissions=emissions[index] if len(emissions[index]) else None,
        )
        for index, (row_id, reason, task) in enumerate(
            zip(rows.tolist(), tensors["finish_reasons"].tolist(), tensors["tasks"].tolist(), strict=True)
        )
    ]


def _tensor(tensors: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    spec, tensor = _REQUEST[name], tensors.get(name)
    if tensor is None:
        raise ValueError(f"the request has no {name}: send it as {spec.datatype} {list(spec.dims)}")
    fits = tensor.ndim == len(spec.dims) and all(
        wanted in (-1, size) for wanted, size in zip(spec.dims, tensor.shape, strict=True)
    )
    if tensor.dtype != spec.dtype or not fits:
        raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}: send {spec.datatype} {list(spec.dims)}")
    return tensor


def _enum(kind: type[Kind], tensor: np.ndarray, name: str) -> Kind:
    value = int(tensor[0])
    try:
        return kind(value)
    except ValueError:
        choices = ", ".join(f"{each.value} ({each.name})" for each in kind)
        raise ValueError(f"{name} is {value}: send one of {choices}") from None


def _columns(samplings: Sequence[Sampling], names: Sequence[str], dtype: type) -> np.ndarray:
    values = [[getattr(each, name) for name in names] for each in samplings]
    return np.array(values, dtype).reshape(len(samplings), len(names))


def _end_to_end(parts: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([*parts, np.empty(0, dtype)]).astype(dtype, copy=False)


def _parts(tensor: np.ndarray, counts: np.ndarray) -> list[np.ndarray]:
    return np.split(tensor, np.cumsum(counts)[:-1]) if len(counts) else []


def _timing_values(timings: RowTimings | None) -> tuple[float, float, float]:
    return (np.nan,) * 3 if timings is None else (timings.queue_s, timings.prefill_s, timings.decode_s)


def _decode_timings(values: np.ndarray) -> RowTimings | None:
    queue_s, prefill_s, decode_s = values.tolist()
    return None if np.isnan(queue_s) else RowTimings(queue_s=queue_s, prefill_s=prefill_s, decode_s=decode_s)
