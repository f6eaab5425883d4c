"""Bytes sent and states held, against real training steps: of 2 processes, and of 4 among the slow tests.

Formulas are met to the byte but for what DeepSpeed pads. `python -m tests.training.planning.test_real_runs FILE` writes
all findings as JSON.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.training.planning.real_runs import Found, on_processes, write_results
from training.layout import Layout

TWO = [
    (Layout(tensor=2), True),
    (Layout(sequence=2), False),
    (Layout(pipeline=2), False),
    (Layout(data=2, zero=2), False),
    (Layout(data=2, zero=3), False),
]
MORE_OF_TWO = [(Layout(tensor=2), False), (Layout(data=2), False), (Layout(data=2, zero=1), False)]
FOUR = [
    (Layout(data=2, tensor=2, zero=2), False),
    (Layout(data=2, tensor=2, zero=3), False),
    (Layout(data=2, tensor=2, zero=3), True),
    (Layout(tensor=2, sequence=2), True),
    (Layout(tensor=2, pipeline=2), True),
    (Layout(pipeline=2, sequence=2), False),
    (Layout(data=2, pipeline=2, zero=1), False),
    (Layout(data=2, pipeline=2, zero=3), False),
]
"""Pipelines last: DeepSpeed numbers parameters over all engines of a process, and ranks of other stages have others."""
CONTROL_BYTES = 64
"""Norms and flags of a step, which the planner leaves out."""
PADDING = 1e-4
"""ZeRO makes its parts of one size."""


@pytest.fixture(scope="module")
def two_processes() -> list[list[Found]]:
    """What both processes did in each layout of TWO: they start once."""
    return on_processes(2, TWO)


@pytest.mark.parametrize("index", range(len(TWO)), ids=[f"{layout}{' checkpointed' * again}" for layout, again in TWO])
def test_bytes_and_states_are_those_of_a_real_step(two_processes: list[list[Found]], index: int) -> None:
    for found in two_processes[index]:
        check(found)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "runs"), [(2, MORE_OF_TWO), (4, FOUR)])
def test_bytes_and_states_are_those_of_more_real_steps(size: int, runs: list[tuple[Layout, bool]]) -> None:
    for processes in on_processes(size, runs):
        for found in processes:
            check(found)


def check(found: Found) -> None:
    for key, size in found.expected.items():
        assert found.counted[key] == pytest.approx(size, rel=PADDING, abs=CONTROL_BYTES), key
    unplanned = {key: size for key, size in found.counted.items() if key not in found.expected}
    assert all(size <= CONTROL_BYTES for size in unplanned.values()), unplanned
    assert found.held == pytest.approx(found.expected_held, rel=PADDING)


if __name__ == "__main__":
    write_results(Path(sys.argv[1]), {2: TWO + MORE_OF_TWO, 4: FOUR})
