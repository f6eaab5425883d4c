"""The highest load at which deadlines are kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.benchmark.comparison.search import FIRST, KEPT, MOST, highest_load, probe


@given(limit=st.floats(0.05, 1.9))
def test_a_bisection_finds_where_a_server_gives_way(limit: float) -> None:
    seen = probe(lambda load: 1.0 if load <= limit else 0.0, runs=10)
    assert highest_load(seen) == pytest.approx(limit, abs=0.01)


def test_a_server_that_keeps_every_load_is_not_driven_beyond_the_most() -> None:
    seen = probe(lambda load: 1.0, runs=10)
    assert max(seen) == highest_load(seen) == MOST


def test_between_two_loads_the_share_falls_evenly() -> None:
    assert highest_load({0.5: 1.0, 1.0: 0.9}) == pytest.approx(0.75)
    assert highest_load({0.5: KEPT, 1.0: 0.5}) == pytest.approx(0.5)
    assert highest_load({FIRST: 0.9}) == pytest.approx(FIRST / 2)


def test_a_failure_below_a_success_counts() -> None:
    """Whoever fails at half of the load does not keep the whole, whatever luck it had there."""
    assert highest_load({0.25: 1.0, 0.5: 0.5, 1.0: 1.0}) < 0.5
