"""Batches and updates survive the way through Triton's tensors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.triton.protocol import (
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
from deploy.triton.wire import (
    REQUEST_TENSORS,
    RESPONSE_TENSORS,
    RequestKind,
    TensorSpec,
    decode_batch,
    decode_cancel,
    decode_kind,
    decode_news,
    encode_batch,
    encode_cancel,
    encode_news,
    encode_stats_query,
)

SEEDS = st.integers(0, 2**63 - 1)
REALS = st.floats(0.0, 10.0)
COUNTS = st.integers(0, 10_000)
SAMPLINGS = st.builds(
    Sampling,
    max_new_tokens=COUNTS,
    min_new_tokens=COUNTS,
    temperature=REALS,
    top_k=COUNTS,
    top_p=REALS,
    repetition_penalty=REALS,
    seed=SEEDS,
    num_beams=COUNTS,
    length_penalty=REALS,
    no_repeat_ngram=COUNTS,
)
IDS = st.lists(st.integers(-(2**40), 2**40), max_size=20)
ROWS = st.builds(
    Row,
    row_id=SEEDS,
    source=IDS.map(lambda ids: Source(np.array(ids, np.int64))),
    sampling=SAMPLINGS,
    stream=st.booleans(),
)
BATCHES = st.builds(GenerationBatch, task=st.sampled_from(Task), rows=st.lists(ROWS, max_size=5).map(tuple))
TIMINGS = st.builds(RowTimings, queue_s=REALS, prefill_s=REALS, decode_s=REALS)
UPDATES = st.builds(
    RowUpdate,
    row_id=SEEDS,
    tokens=st.lists(st.integers(0, 2**31 - 1), max_size=6).map(lambda ids: np.array(ids, np.int32)),
    finish_reason=st.sampled_from(FinishReason),
    task=st.sampled_from(Task),
    timings=st.none() | TIMINGS,
    route=st.none() | st.just(np.array([0.25, 0.5, 0.25], np.float32)),
    emissions=st.none() | st.integers(1, 9).map(lambda size: np.arange(3 * size, dtype=np.float32).reshape(size, 3)),
)
TOTALS = st.builds(
    StepTotals,
    steps=st.integers(0, 2**53),
    rows=st.integers(0, 2**53),
    cached_tokens=st.integers(0, 2**53),
    seconds=REALS,
)
STATISTICS = st.builds(
    EngineStats,
    slots_used=COUNTS,
    slots_total=COUNTS,
    waiting_rows=COUNTS,
    generation_steps=TOTALS,
    summary_steps=TOTALS,
)
PREFILLS = st.builds(PrefillTime, rows=st.integers(1, 2**53), tokens=st.integers(1, 2**53), seconds=REALS)
STATS = EngineStats(slots_used=3, slots_total=32, waiting_rows=7)


def check_table(tensors: dict[str, np.ndarray], table: tuple[TensorSpec, ...]) -> None:
    specs = {spec.name: spec for spec in table}
    for name, tensor in tensors.items():
        assert tensor.dtype == specs[name].dtype
        assert len(tensor.shape) == len(specs[name].dims)
        assert all(wanted in (-1, size) for wanted, size in zip(specs[name].dims, tensor.shape, strict=True))
    assert all(spec.name in tensors for spec in table if not spec.optional)


@given(BATCHES)
def test_a_batch_survives(batch: GenerationBatch) -> None:
    tensors = encode_batch(batch)
    check_table(tensors, REQUEST_TENSORS)
    assert decode_kind(tensors) is RequestKind.BATCH
    decoded = decode_batch(tensors)
    assert decoded.task is batch.task
    assert len(decoded.rows) == len(batch.rows)
    for row, expected in zip(decoded.rows, batch.rows, strict=True):
        assert (row.row_id, row.stream, row.sampling) == (expected.row_id, expected.stream, expected.sampling)
        assert row.source.ids.dtype == np.int64
        assert row.source.ids.tolist() == expected.source.ids.tolist()


@given(st.lists(UPDATES, max_size=6), st.lists(PREFILLS, max_size=3).map(tuple), STATISTICS)
def test_news_survives(updates: list[RowUpdate], prefills: tuple[PrefillTime, ...], statistics: EngineStats) -> None:
    tensors = encode_news(BatchNews(updates=updates, prefills=prefills), statistics)
    check_table(tensors, RESPONSE_TENSORS)
    news, stats = decode_news(tensors)
    assert stats == statistics
    assert news.prefills == prefills
    assert len(news.updates) == len(updates)
    for update, expected in zip(news.updates, updates, strict=True):
        for name in ("row_id", "finish_reason", "task", "timings"):
            assert getattr(update, name) == getattr(expected, name)
        assert update.tokens.tolist() == expected.tokens.tolist()
        for name in ("route", "emissions"):
            found, wanted = getattr(update, name), getattr(expected, name)
            assert (found is None) == (wanted is None)
            assert found is None or np.array_equal(found, wanted)


def test_no_tensor_is_empty() -> None:
    bare = RowUpdate(row_id=1, tokens=np.empty(0, np.int32), finish_reason=FinishReason.CANCELLED, task=Task.AUTO)
    for updates in ([], [bare]):
        assert all(tensor.size for tensor in encode_news(BatchNews(updates=updates), STATS).values())


def test_kinds_tell_requests_apart() -> None:
    cancel = encode_cancel([4, 2**62])
    assert decode_kind(cancel) is RequestKind.CANCEL
    assert decode_cancel(cancel) == [4, 2**62]
    assert decode_kind(encode_stats_query()) is RequestKind.STATS


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("request_kind", np.array([9], np.int32), "request_kind is 9: send one of 0 \\(BATCH\\)"),
        ("task", np.array([0], np.int64), "task is int64 \\[1\\]: send INT32"),
        ("task", np.array([4], np.int32), "task is 4: send one of"),
        ("stream", np.array([True, False]), "stream has 2 rows, row_ids has 1"),
        ("input_lengths", np.array([2], np.int32), "add up to 2, input_ids holds 3"),
        ("input_lengths", np.array([-3], np.int32), "add up to -3"),
        ("sampling_reals", np.ones((1, 5)), "sampling_reals is float64 \\[1, 5\\]: send FP64 \\[-1, 4\\]"),
        ("row_ids", None, "the request has no row_ids: send it as INT64"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(name: str, tensor: np.ndarray | None, message: str) -> None:
    row = Row(row_id=1, source=Source(np.array([5, 6, 7])), sampling=Sampling(max_new_tokens=1))
    tensors = encode_batch(GenerationBatch(task=Task.GENERATION, rows=(row,)))
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    with pytest.raises(ValueError, match=message):
        (decode_kind(tensors), decode_batch(tensors))
