"""Nobody waits for a neighbour's long text. Ratios, for the machine may be busy: figures are the measurement's."""

from __future__ import annotations

import asyncio

import pytest

from tests.end_to_end.conftest import Service
from tests.end_to_end.measure_neighbours import measure


@pytest.mark.slow
def test_short_questions_and_streams_go_on_beside_long_texts(own_service: Service) -> None:
    found = asyncio.run(measure(own_service, 2, [1]))
    for questions in found["questions"]:
        # 300 times as long where windows are computed in the order in which they came.
        assert questions["beside_p95_s"] <= 100 * questions["alone_median_s"]
        assert questions["until_triton_is_idle_worst_s"] <= 50 * questions["alone_median_s"]
    (streams,) = found["streams"]
    # As long as the whole encoder pass where steps wait for it.
    assert streams["largest_gap_beside_summary_s"] <= 0.4 * min(streams["first_token_alone_s"])
    assert streams["first_token_ratio_median"] <= 2
