"""Computations that take turns: one's transfers hide behind what the others compute."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TypeVar

Result = TypeVar("Result")
Steps = Generator[None, None, Result]
"""A computation that yields whenever an exchange of its own is on its way."""


def run(steps: Steps[Result]) -> Result:
    """Run a computation to its end, waiting for each exchange as it comes."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def together(tasks: Iterable[Steps[Result]]) -> Steps[list[Result]]:
    """Run computations in turns: while one's exchange is on its way, the others compute.

    The turns depend on nothing but the tasks, so that all ranks start their exchanges in one order.
    """
    waiting = list(enumerate(tasks))
    results: dict[int, Result] = {}
    while waiting:
        going = []
        for index, steps in waiting:
            try:
                next(steps)
                going.append((index, steps))
            except StopIteration as end:
                results[index] = end.value
        waiting = going
        if waiting:
            yield
    return [results[index] for index in sorted(results)]
