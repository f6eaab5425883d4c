"""What becomes of an input that the router takes for a text to summarise."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deploy.triton.protocol import FinishReason, RowTimings, RowUpdate, Source, Task
from service.gateway import build_gateway
from service.settings import Settings
from service.tasks.routing import Routing, WrittenText
from service.tasks.toolkit import RequestTime, Toolkit
from service.tasks.writing import SHORTEST_SUMMARISED, Writing

ROUTE = np.array([0.1, 0.2, 0.7], np.float32)
WRITTEN = "what the model writes"


@dataclass
class RoutedRow:
    """A row that the engine has routed to summaries, and written."""

    source: Source
    tokens: np.ndarray
    pending: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(arrived_s=0.0, sent_s=0.0))
    row: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(stream=False))

    async def updates(self) -> AsyncIterator[RowUpdate]:
        yield RowUpdate(
            row_id=1,
            tokens=self.tokens,
            finish_reason=FinishReason.STOP,
            task=Task.SUMMARY,
            timings=RowTimings(queue_s=0.0, prefill_s=0.0, decode_s=0.0),
            route=ROUTE,
        )

    def cancel(self) -> None:
        """It has ended."""


@dataclass
class RoutingLane:
    """Rows that are all routed to summaries."""

    tokens: np.ndarray
    asked: list[tuple[Task, int]] = field(default_factory=list)

    def submit(self, task: Task, source: Source, sampling: Any, **how: Any) -> RoutedRow:
        self.asked.append((task, len(source.ids)))
        return RoutedRow(source, self.tokens)


@pytest.fixture(scope="module")
def tools() -> Toolkit:
    """The shipped bundle's, of a gateway that does not run."""
    return build_gateway(Settings.model_validate({"runtime": "local"})).served.tools


async def route(tools: Toolkit, text: str, context: str | None = None) -> tuple[WrittenText, RoutingLane]:
    """What an input is answered that the router takes for a text to summarise."""
    lane = RoutingLane((await tools.codec.encode(WRITTEN)).ids.astype(np.int32))
    tools = replace(tools, rows=lane)  # type: ignore[arg-type]
    now_s = tools.clock.now_s()
    time = RequestTime(arrived_s=now_s, deadline_s=now_s + 600)
    # Neither questions nor generated texts are asked for here.
    routing = Routing(tools, None, None, Writing(Task.SUMMARY, tools))  # type: ignore[arg-type]
    routed = await routing.infer(text, context, Task.AUTO, time)
    assert (routed.task, routed.route[Task.SUMMARY]) == (Task.SUMMARY, pytest.approx(0.7))
    assert isinstance(routed.result, WrittenText)
    return routed.result, lane


@pytest.mark.parametrize(
    ("text", "context", "summary"),
    [
        ("hi", None, "hi"),
        (" Ben: Not yet.\r\n", None, "Ben: Not yet."),
        ("Anna: Hi.", "Ben: Ho.", "Anna: Hi.\n\nBen: Ho."),
    ],
)
async def test_a_text_of_a_few_words_is_its_own_summary_where_the_router_chose(
    tools: Toolkit, text: str, context: str | None, summary: str
) -> None:
    result, lane = await route(tools, text, context)
    assert (result.text, result.ending.finish_reason) == (summary, "stop")
    assert [task for task, _ in lane.asked] == [Task.AUTO]


async def test_the_shortest_text_that_is_summarised_where_the_router_chose(tools: Toolkit) -> None:
    words = "the " * 40
    short, long = (words[: 4 * count].strip() for count in (SHORTEST_SUMMARISED - 1, SHORTEST_SUMMARISED))
    assert [len((await tools.codec.encode(each)).ids) for each in (short, long)] == [19, 20]
    assert (await route(tools, short))[0].text == short
    assert (await route(tools, long))[0].text == WRITTEN
