"""Questions: windows over the context go out, tag scores come back, and the best spans become answers.

[<qa>] question [<sep>] window of the context      neighbours share half, so no answer is cut
                        └──── tag scores ────▶ a distribution over the window's spans ─▶ merged answers
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np

from deploy.triton.protocol import Source
from service.errors import DeadlineUnreachable
from service.tasks.deadlines import until
from service.tasks.merging import MergedAnswers, Place
from service.tasks.normalisation import Lines, normalise
from service.tasks.reading import Reading, TokenLimit, read, read_freely
from service.tasks.spans import SpanDistribution, SpanReader, Window, make_windows
from service.tasks.toolkit import RequestTime, Toolkit

MAX_ANSWERS = 20
TEXTS_READ = 4 * MAX_ANSWERS
"""Different texts that a window may add. The same for every request, so that a score does not depend on how many were
asked for."""

SPANS_KEPT = 4 * TEXTS_READ
"""Of a window. More than texts, because spans with equal texts are merged: a table repeats its words."""

WINDOWS_AHEAD = 8
"""Windows of one request queued or running at once: a question that comes later waits for these, not for a book."""


TRUSTED = 2.0
"""A context is refused for its length where it is predicted to take so many times as long as it may."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A stretch of the context: `context[start:end] == text`, in code points; and where else its text stands."""

    text: str
    start: int
    end: int
    score: float
    """P(this is the answer), wherever it stands."""

    places: list[Place]
    """Best first: that of `start` and `end`, and others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Answers, best first."""

    answers: list[Answer]
    no_answer_score: float
    """P(the context holds no answer). With all scores it sums to 1 at most."""


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
        DeadlineUnreachable for a context that takes longer than the request has, Overloaded, Unavailable,
        DeadlineExceeded or InferenceFailed.
        """
        head = await self._head(question, time, param)
        async with self._tools.text_room.hold(len(context.encode()), time.deadline_s):
            async with until(time.deadline_s, self._tools.clock):
                reading = await read_freely(context, Lines.NONE, self._tools.codec)
            windows = make_windows(len(reading.ids), self._window_tokens - len(head))
            self._check_time(len(windows), len(head) + windows[0].end, time)
            reader, merged = self._reader(windows), MergedAnswers()
            sources = (np.concatenate([head, reading.ids[window.start : window.end]]) for window in windows)
            async with aclosing(self._scores(sources, time)) as scores:
                async for index, emissions_S3 in scores:
                    add_window(merged, reader.read(index, emissions_S3[len(head) :]), reading)
            self._tools.metrics.prompt_tokens.inc(sum(len(head) + window.end - window.start for window in windows))
            return best_answers(merged, reading, top_k, min_score)

    def _check_time(self, windows: int, tokens: int, time: RequestTime) -> None:
        """Refuse a context whose windows alone take longer than is left. Raises DeadlineUnreachable."""
        left_s = time.deadline_s - self._tools.clock.now_s()
        needed_s = self._tools.windows.least_s(windows, tokens)
        if needed_s > TRUSTED * left_s:
            raise DeadlineUnreachable(
                f"the context has {windows} windows, which take about {needed_s:.1f} s, and {max(0.0, left_s):.1f} s "
                "are left until the deadline: allow more in X-Request-Timeout-Ms, or shorten the context",
                param="context",
            )

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
        reader, merged = self._reader([Window(start=0, end=len(context.ids))]), MergedAnswers()
        add_window(merged, reader.read(0, emissions_S3), context)
        return best_answers(merged, context, 1, 0.0)

    def _reader(self, windows: Sequence[Window]) -> SpanReader:
        return SpanReader(
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
                        Source(source), deadline_s=time.deadline_s, bounded=index == 0, flow=flow, tier=time.tier
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


def compared(text: str) -> str:
    """An answer's text as it is compared with others: what white space and emoji style there is makes no difference."""
    return normalise(text).text.replace("\ufe0f", "")


def add_window(merged: MergedAnswers, spans: SpanDistribution, context: Reading) -> None:
    """Merge a window's spans as places of the context as it was sent. Texts that differ in white space are equal."""
    texts: set[str] = set()
    found: list[tuple[str, tuple[int, int], float]] = []
    for span in spans.best:
        if place := context.place(span.start, span.end - 1):
            texts.add(text := compared(context.sent[slice(*place)]))
            if len(texts) > TEXTS_READ:
                break
            found.append((text, place, spans.probability(span)))
    merged.add(spans.none_probability, found)


def best_answers(merged: MergedAnswers, context: Reading, top_k: int, min_score: float) -> Answers:
    """The best answers, each at its best place."""
    answers = [
        Answer(
            text=context.sent[each.places[0].start : each.places[0].end],
            start=each.places[0].start,
            end=each.places[0].end,
            score=each.score,
            places=each.places,
        )
        for each in merged.best(top_k)
        if each.score >= min_score
    ]
    return Answers(answers=answers, no_answer_score=merged.none_probability)
