"""Questions: windows over the context go out, tag scores come back, and the best spans become answers.

[<qa>] question [<sep>] window of the context      neighbours share half, so no answer is cut
                        └──── tag scores ────▶ one distribution over all spans of the context
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from deploy.triton.protocol import Source
from service.tasks.deadlines import until
from service.tasks.normalisation import Lines
from service.tasks.reading import Reading, TokenLimit, read, read_freely
from service.tasks.spans import SpanDistribution, Window, make_windows
from service.tasks.toolkit import RequestTime, Toolkit

MAX_ANSWERS = 20
SPANS_KEPT = 4 * MAX_ANSWERS
"""More than answers, because spans that differ in white space or in parts of one character are merged. The same for
every request, so that a score does not depend on how many were asked for."""

WINDOWS_AHEAD = 8
"""Windows of one request queued or running at once: a question that comes later waits for these, not for a book."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A stretch of the context: `context[start:end] == text`, in code points."""

    text: str
    start: int
    end: int
    score: float
    """P(this is the answer)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Answers, best first."""

    answers: list[Answer]
    no_answer_score: float
    """P(the context holds no answer)."""


class Questions:
    """Finds answers in contexts of any length."""

    def __init__(self, tools: Toolkit) -> None:
        self._tools = tools
        self._window_tokens = tools.limits.qa_window_tokens
        self._task_token, self._separator = tools.codec.special["<qa>"], tools.codec.special["<sep>"]

    async def answer(
        self, question: str, context: str, time: RequestTime, *, top_k: int = 1, min_score: float = 0.0, param: str
    ) -> Answers:
        """The `top_k` best answers of at least `min_score`. `param` is what the question is called in the request.

        Raises ContextLengthExceeded for a question that leaves less than a quarter of a window to the context,
        Overloaded, Unavailable, DeadlineExceeded or InferenceFailed.
        """
        head = await self._head(question, time, param)
        async with self._tools.text_room.hold(len(context.encode()), time.deadline_s):
            async with until(time.deadline_s, self._tools.clock):
                reading = await read_freely(context, Lines.NONE, self._tools.codec)
            windows = make_windows(len(reading.ids), self._window_tokens - len(head))
            spans = self._distribution(windows)
            sources = (np.concatenate([head, reading.ids[window.start : window.end]]) for window in windows)
            async with aclosing(self._scores(sources, time)) as scores:
                async for index, emissions_S3 in scores:
                    spans.add(index, emissions_S3[len(head) :])
            self._tools.metrics.prompt_tokens.inc(sum(len(head) + window.end - window.start for window in windows))
            return best_answers(spans, reading, top_k, min_score)

    async def _head(self, question: str, time: RequestTime, param: str) -> np.ndarray:
        """What every window begins with."""
        limit = TokenLimit(
            what=param,
            param=param,
            limit=self._window_tokens - 2 - self._window_tokens // 4,
            fix="shorten the question",
        )
        (reading,) = await read([question], [Lines.NONE], limit, time, self._tools)
        return np.concatenate([[self._task_token], reading.ids, [self._separator]])

    def answer_from(self, emissions_S3: np.ndarray, context: Reading) -> Answers:
        """The best answer, from tag scores of a whole context that are there already."""
        spans = self._distribution([Window(start=0, end=len(context.ids))])
        spans.add(0, emissions_S3)
        return best_answers(spans, context, 1, 0.0)

    def _distribution(self, windows: Sequence[Window]) -> SpanDistribution:
        return SpanDistribution(
            windows=windows,
            crf=self._tools.manifest.crf,
            max_tokens=self._tools.limits.max_answer_tokens,
            count=SPANS_KEPT,
        )

    async def _scores(self, sources: Iterable[np.ndarray], time: RequestTime) -> AsyncGenerator[tuple[int, np.ndarray]]:
        """Tag scores of every window, in order. The first is admitted or refused; the rest then follows it."""
        waiting: deque[asyncio.Future[np.ndarray]] = deque()
        flow, done = object(), 0
        try:
            for index, source in enumerate(sources):
                if len(waiting) == WINDOWS_AHEAD:
                    yield done, await waiting[0]
                    waiting.popleft()
                    done += 1
                waiting.append(
                    self._tools.windows.submit(
                        Source(source), deadline_s=time.deadline_s, part=index, flow=flow, tier=time.tier
                    )
                )
            while waiting:
                yield done, await waiting[0]
                waiting.popleft()
                done += 1
        finally:
            for future in waiting:
                future.cancel()
            # Where one batch failed several windows, nobody else asks the others why.
            await asyncio.gather(*waiting, return_exceptions=True)


def best_answers(spans: SpanDistribution, context: Reading, top_k: int, min_score: float) -> Answers:
    """The best spans as places of the context as it was sent; of spans with one place the sum counts."""
    scores: dict[tuple[int, int], float] = {}
    for span in spans.best():
        if place := context.place(span.start, span.end - 1):
            scores[place] = scores.get(place, 0.0) + spans.probability(span)
    ranked = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    answers = [
        Answer(text=context.sent[start:end], start=start, end=end, score=score)
        for (start, end), score in ranked[:top_k]
        if score >= min_score
    ]
    return Answers(answers=answers, no_answer_score=spans.none_probability)
