"""Room for long texts: never more bytes than there may be, by order of arrival, given back whatever happens."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.clock import LoopClock
from service.errors import DeadlineExceeded
from service.tasks.text_room import SHORT_BYTES, TextRoom

FAR = LoopClock().now_s() + 1e6
KILO = 1024


class Text(asyncio.Task[None]):
    """A text that stays in a room until it may go."""

    def __init__(self, room: TextRoom, kilobytes: int, inside: list[Text]) -> None:
        self.size, self.may_go, self.failure = kilobytes * KILO, asyncio.Event(), None
        super().__init__(self._stay(room, inside))

    async def _stay(self, room: TextRoom, inside: list[Text]) -> None:
        async with room.hold(self.size, FAR):
            inside.append(self)
            try:
                await self.may_go.wait()
            finally:
                inside.remove(self)


async def settle() -> None:
    """Let everything that can happen happen."""
    for _ in range(5):
        await asyncio.sleep(0)


@given(
    st.lists(
        st.one_of(
            st.integers(17, 100),
            st.tuples(st.sampled_from(["go", "cancel"]), st.integers(0, 20)),
            st.just("settle"),
        ),
        max_size=40,
    )
)
def test_the_limit_holds_and_the_order_is_that_of_arrival(steps: list) -> None:
    async def run() -> None:
        room, inside, alive = TextRoom(100 * KILO, LoopClock()), [], []
        everyone: list[Text] = []
        for step in steps:
            if isinstance(step, int):
                alive.append(Text(room, step, inside))
                everyone.append(alive[-1])
            elif step != "settle" and alive:
                text = alive[step[1] % len(alive)]
                text.may_go.set() if step[0] == "go" else text.cancel()
            if step != "settle":
                continue
            await settle()
            alive = [text for text in alive if not text.done()]
            assert room.held_bytes == sum(text.size for text in inside) <= 100 * KILO
            waiting = [text for text in alive if text not in inside]
            assert alive == [*(text for text in alive if text in inside), *waiting], "the first come are inside"
            assert not waiting or room.held_bytes + waiting[0].size > 100 * KILO, "nobody waits before free room"
        for text in alive:
            text.cancel()
        ends = await asyncio.gather(*everyone, return_exceptions=True)
        assert all(end is None or isinstance(end, asyncio.CancelledError) for end in ends)
        assert room.held_bytes == 0

    asyncio.run(run())


async def test_a_short_text_waits_for_nobody() -> None:
    room = TextRoom(100 * KILO, LoopClock())
    async with room.hold(100 * KILO, FAR), room.hold(SHORT_BYTES, FAR):
        assert room.held_bytes == 100 * KILO


async def test_waiting_ends_at_the_deadline_and_room_is_given_back_after_an_error() -> None:
    clock = LoopClock()
    room = TextRoom(100 * KILO, clock)
    with suppress(KeyError):
        async with room.hold(60 * KILO, FAR):
            with pytest.raises(DeadlineExceeded):
                async with room.hold(60 * KILO, clock.now_s() + 0.01):
                    pytest.fail("there was no room")
            raise KeyError
    assert room.held_bytes == 0
    async with room.hold(100 * KILO, FAR):
        pass


async def test_one_that_gives_up_while_room_is_given_back_leaves_cleanly() -> None:
    room = TextRoom(100_000, LoopClock())
    deadline_s = LoopClock().now_s() + 60

    async def held() -> None:
        async with room.hold(80_000, deadline_s):
            pass

    async with room.hold(80_000, deadline_s):
        giving_up, patient = asyncio.create_task(held()), asyncio.create_task(held())
        await asyncio.sleep(0)
        # Its turn is cancelled at once; it hears of that only after this block has given its room back.
        giving_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await giving_up
    await patient
    assert room.held_bytes == 0
