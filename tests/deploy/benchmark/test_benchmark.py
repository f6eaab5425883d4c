"""The load generator and its tables."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from deploy.benchmark import arrivals, report, workload


def test_poisson_arrivals_are_ordered_repeatable_and_have_the_rate() -> None:
    times = arrivals.poisson(50.0, 100.0, seed=1)
    assert np.all(np.diff(times) >= 0)
    assert abs(len(times) / 100.0 - 50.0) < 3.0
    np.testing.assert_array_equal(times, arrivals.poisson(50.0, 100.0, seed=1))


@pytest.mark.parametrize(("rate", "duration"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_a_rate_that_is_not_positive_is_refused(rate: float, duration: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        arrivals.poisson(rate, duration, seed=0)


def test_a_trace_is_replayed_in_compressed_time(tmp_path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens\n2023-11-16 18:15:46.6805900,3\n2023-11-16 18:15:50.6805900,4\n"
        "2023-11-16 18:15:48.6805900,9\n",
        encoding="utf-8",
    )
    np.testing.assert_allclose(arrivals.trace(path, duration_s=10.0, speedup=2.0), [0.0, 1.0, 2.0])
    np.testing.assert_allclose(arrivals.trace(path, duration_s=1.5, speedup=2.0), [0.0, 1.0])


def test_a_csv_without_timestamps_is_named(tmp_path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"no TIMESTAMP column.*\['a', 'b'\]"):
        arrivals.trace(path, duration_s=1.0, speedup=1.0)


def test_equal_seeds_give_equal_loads_in_the_asked_mix() -> None:
    mix = workload.parse_mix("generation=3,qa=1")
    first = list(islice(workload.built_in(mix, 16, seed=7), 400))
    assert first == list(islice(workload.built_in(mix, 16, seed=7), 400))
    share = sum(query.path == "/v1/generate" for query in first) / len(first)
    assert abs(share - 0.75) < 0.08
    assert all(1 <= query.body["max_new_tokens"] <= 16 for query in first if query.streams)


@pytest.mark.parametrize("text", ["generation=x", "generation=0", "qa=-1,generation=1"])
def test_a_bad_mix_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"TASK=WEIGHT|must be positive"):
        workload.parse_mix(text)


def test_figures_count_failures_and_deadlines() -> None:
    sample = {"path": "/v1/generate", "late_s": 0.0, "pieces": 4, "tokens": 10}
    samples = [
        {**sample, "scheduled_s": 0.0, "status": 200, "ttft_s": 0.1, "total_s": 1.0},
        {**sample, "scheduled_s": 1.0, "status": 200, "ttft_s": 0.3, "total_s": 4.0},
        {**sample, "scheduled_s": 2.0, "status": 429, "ttft_s": None, "total_s": 0.01},
    ]
    figures = report.summarise({"name": "x", "settings": {"deadline_ms": 2000}, "samples": samples})
    assert figures["requests"] == 3
    assert figures["failed"] == 1
    assert figures["goodput_per_s"] == pytest.approx(1 / 5)
    assert figures["attainment"] == pytest.approx(1 / 3)
    assert figures["ttft_ms_p50"] == pytest.approx(200.0)
    assert figures["tokens_per_s"] == pytest.approx(4.0)


def test_a_table_replaces_only_its_own_section() -> None:
    text = "a\n<!-- begin load -->\nold\n<!-- end load -->\nb"
    replaced = report.replace_between(text, "load", "| new |")
    assert replaced == "a\n<!-- begin load -->\n| new |\n<!-- end load -->\nb"
    with pytest.raises(ValueError, match="begin other"):
        report.replace_between(text, "other", "")
