"""Pipelined requests take turns with everything else."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from service.connection.turns import A_ROUND, Turns


async def test_a_round_has_few_turns_and_all_come_in_order() -> None:
    turns, taken, seen = Turns(), [], []
    for index in range(10 * A_ROUND):
        turns.wait(lambda index=index: taken.append(index))
    while len(taken) < 10 * A_ROUND:
        await asyncio.sleep(0)
        seen.append(len(taken))
    assert taken == list(range(10 * A_ROUND))
    assert max(after - before for before, after in pairwise(seen)) <= A_ROUND


async def test_who_waits_again_comes_last() -> None:
    turns, taken = Turns(), []

    def again() -> None:
        taken.append("again")
        if len(taken) < 5 * A_ROUND:
            turns.wait(again)

    turns.wait(again)
    turns.wait(lambda: taken.append("other"))
    for _ in range(5 * A_ROUND):
        await asyncio.sleep(0)
    assert taken[1] == "other"
    assert taken.count("again") == 5 * A_ROUND - 1
