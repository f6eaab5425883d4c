"""Inputs whose task is named, or is to be found: one encoder pass routes a source and feeds the decoder it chose.

    <s> input                       generation, or a summary of the input
    <s> input <sep> context         the same, or an answer from the context

What is routed is written greedily, and no three tokens twice: a source is sent before anybody knows which task's
settings it will need.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from deploy.triton.protocol import RowUpdate, Sampling, Source, Task
from service.batching.rows import RowTicket
from service.errors import InvalidInput
from service.tasks.answers import Ending, TextAnswer
from service.tasks.normalisation import Lines
from service.tasks.questions import Answers, Questions
from service.tasks.reading import Reading, TokenLimit, read
from service.tasks.toolkit import RequestTime, Toolkit
from service.tasks.writing import (
    DEFAULT_NEW_TOKENS,
    NO_REPEAT_NGRAM,
    SUMMARY_MIN_TOKENS,
    Writing,
    random_seed,
    summary_beams,
    summary_sampling,
)

ROUTED = (Task.GENERATION, Task.QA, Task.SUMMARY)
ROUTED_SAMPLING = Sampling(max_new_tokens=DEFAULT_NEW_TOKENS, temperature=0.0, no_repeat_ngram=NO_REPEAT_NGRAM)


@dataclass(frozen=True, slots=True)
class WrittenText:
    """A generated text or a summary."""

    text: str
    ending: Ending


@dataclass(frozen=True, kw_only=True, slots=True)
class Routed:
    """An answer, and the way to it."""

    task: Task
    route: Mapping[Task, float]
    """P(task); 1 for a task that the request named."""

    result: WrittenText | Answers


class Routing:
    """Answers whatever comes with the task that fits."""

    def __init__(self, tools: Toolkit, generation: Writing, questions: Questions, summary: Writing) -> None:
        self._tools, self._questions = tools, questions
        self._writing = {Task.GENERATION: generation, Task.SUMMARY: summary}
        self._begin, self._separator = tools.codec.special["<s>"], tools.codec.special["<sep>"]

    async def infer(self, text: str, context: str | None, task: Task, time: RequestTime) -> Routed:
        """Answer an input with a task's defaults, or with the task that the router finds for it (Task.AUTO).

        Without a context there is nothing to find an answer in: then the likelier of the other two tasks is taken.

        Raises ContextLengthExceeded, InvalidInput, Overloaded, Unavailable, DeadlineExceeded or InferenceFailed.
        """
        if task is Task.AUTO:
            return await self._route(text, context, time)
        route = {each: float(each is task) for each in ROUTED}
        return Routed(task=task, route=route, result=await self._run(task, text, context, time))

    async def _run(self, task: Task, text: str, context: str | None, time: RequestTime) -> WrittenText | Answers:
        if task is Task.QA:
            if context is None:
                raise InvalidInput("the task qa finds its answer in a context: send context", param="context")
            return await self._questions.answer(text, context, time, param="input")
        if task is Task.SUMMARY:
            sampling = summary_sampling(
                max_new_tokens=DEFAULT_NEW_TOKENS,
                min_new_tokens=SUMMARY_MIN_TOKENS,
                num_beams=summary_beams(self._tools.limits.max_beams, stream=False),
            )
        else:
            sampling = Sampling(max_new_tokens=DEFAULT_NEW_TOKENS, seed=random_seed())
        whole = text if context is None else f"{text}\n\n{context}"
        answer = await self._writing[task].start(whole, sampling, time, param="input")
        return WrittenText(*await answer.whole())

    async def _route(self, text: str, context: str | None, time: RequestTime) -> Routed:
        limit = TokenLimit(
            what="input, with its context,",
            param="input",
            limit=self._tools.limits.max_source_tokens,
            own_tokens=1 if context is None else 2,
            fix="shorten it, or name the task: qa reads contexts of any length",
        )
        asked, about = await read([text, context or ""], [Lines.DOUBLE, Lines.NONE], limit, time, self._tools)
        head = [[self._begin], asked.ids] if context is None else [[self._begin], asked.ids, [self._separator]]
        source = Source(np.concatenate([*head, about.ids]))
        ticket = self._tools.rows.submit(
            Task.AUTO, source, ROUTED_SAMPLING, stream=False, deadline_s=time.deadline_s, tier=time.tier
        )
        update = await _only_update(ticket)
        assert update.route is not None, "an AUTO row is routed"
        route = dict(zip(ROUTED, update.route.tolist(), strict=True))
        if update.task is not Task.QA:
            piece = TextAnswer(ticket, self._tools, time).read(update)
            assert piece.ending is not None, "a row that is not streamed comes whole"
            return Routed(task=update.task, route=route, result=WrittenText(piece.text, piece.ending))
        if context is None:
            task = max(self._writing, key=lambda each: route[each])
            return Routed(task=task, route=route, result=await self._run(task, text, None, time))
        return Routed(task=Task.QA, route=route, result=await self._answer(update, source.cost, text, about, time))

    async def _answer(self, update: RowUpdate, tokens: int, text: str, context: Reading, time: RequestTime) -> Answers:
        """From the pass that routed, if the model reads questions of that length; else window by window."""
        if tokens > self._tools.limits.qa_window_tokens:
            return await self._questions.answer(text, context.sent, time, param="input")
        assert update.emissions is not None, "a row of the task qa carries tag scores"
        self._tools.metrics.prompt_tokens.inc(tokens)
        return self._questions.answer_from(update.emissions[tokens - len(context.ids) :], context)


async def _only_update(ticket: RowTicket) -> RowUpdate:
    """All of a row that is not streamed. Gives the row up where nobody waits any more."""
    try:
        async for update in ticket.updates():
            return update
        raise AssertionError("a row has a last update")
    finally:
        ticket.cancel()
