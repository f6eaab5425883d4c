"""The two tasks that write, generation and summary: `[task token] text` goes in, tokens come out."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np

from deploy.triton.protocol import Sampling, Source, Task
from service.errors import InvalidInput
from service.tasks.answers import ReadyAnswer, TextAnswer, Usage
from service.tasks.normalisation import Lines
from service.tasks.reading import Reading, TokenLimit, read
from service.tasks.toolkit import RequestTime, Toolkit, check_at_most

DEFAULT_NEW_TOKENS = 128
SUMMARY_BEAMS = 4
SUMMARY_MIN_TOKENS = 1
SHORTEST_SUMMARISED = 20
"""Texts of fewer tokens are their own summary: of fewer than 16 the shipped model writes gibberish."""

NO_REPEAT_NGRAM = 3
"""No sequence of three tokens occurs twice in a summary: small models like to go round in circles."""


def random_seed() -> int:
    """A seed for a request that names none."""
    return secrets.randbits(63)


def summary_beams(max_beams: int, *, stream: bool) -> int:
    """Beams of a request that names none: a stream shows tokens before a search could take them back."""
    return 1 if stream else min(SUMMARY_BEAMS, max_beams)


def summary_sampling(*, max_new_tokens: int, min_new_tokens: int, num_beams: int) -> Sampling:
    """How summaries are written: the likeliest text, of one or more beams."""
    return Sampling(
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        temperature=0.0,
        num_beams=num_beams,
        no_repeat_ngram=NO_REPEAT_NGRAM,
    )


def own_summary(
    text: Reading, sampling: Sampling, prompt_tokens: int, tools: Toolkit, time: RequestTime
) -> ReadyAnswer | None:
    """A text too short to be summarised, as its own summary, cut at the most tokens asked for.

    None where the model is to write: the text is long enough, or at least as many tokens are asked for as it lacks.
    """
    tokens = len(text.ids)
    if tokens >= SHORTEST_SUMMARISED or sampling.min_new_tokens > max(tokens, SUMMARY_MIN_TOKENS):
        return None
    kept = min(tokens, sampling.max_new_tokens)
    place = text.place(0, kept - 1) if kept else None
    usage = Usage(prompt_tokens=prompt_tokens, completion_tokens=kept)
    return ReadyAnswer(
        text.sent[slice(*place)] if place else "", usage, "length" if kept < tokens else "stop", tools, time
    )


class Writing:
    """One of the tasks that write."""

    def __init__(self, task: Task, tools: Toolkit) -> None:
        self.task, self._tools = task, tools
        self._task_token = tools.codec.special[f"<{task.name.lower()}>"]

    async def start(
        self,
        text: str | Sequence[int],
        sampling: Sampling,
        time: RequestTime,
        *,
        param: str,
        length_param: str = "max_new_tokens",
        least_param: str = "min_new_tokens",
        stops: Sequence[str] = (),
        stream: bool = False,
    ) -> TextAnswer | ReadyAnswer:
        """Queue one text, or the ids of its tokens. A text of a few words is its own summary.

        `param`, `length_param` and `least_param` are what the text, `max_new_tokens` and `min_new_tokens` are called
        in the request. An answer with stop strings comes token by token even where the request does not stream, so
        that it ends where they say.

        Raises ContextLengthExceeded, InvalidInput, DeadlineExceeded, Overloaded or Unavailable.
        """
        limits = self._tools.limits
        check_at_most(limits.max_target_tokens, **{length_param: sampling.max_new_tokens})
        check_at_most(self._tools.codec.vocabulary, top_k=sampling.top_k)
        check_at_most(limits.max_beams, num_beams=sampling.num_beams)
        if sampling.min_new_tokens > sampling.max_new_tokens:
            raise InvalidInput(
                f"{least_param} is {sampling.min_new_tokens} and {length_param} {sampling.max_new_tokens}: "
                "ask for as many at most as at least",
                param=least_param,
            )
        if isinstance(text, str):
            reading = await self._read(text, self._limit(param), time)
            if self.task is Task.SUMMARY and (
                ready := own_summary(reading, sampling, 1 + len(reading.ids), self._tools, time)
            ):
                return ready
            ids = reading.ids
        else:
            self._limit(param).check(len(text))
            ids = np.array(text, np.int64)
        source = Source(np.concatenate([[self._task_token], ids]))
        row_stream = stream or bool(stops)
        ticket = self._tools.rows.submit(
            self.task, source, sampling, stream=row_stream, deadline_s=time.deadline_s, tier=time.tier
        )
        return TextAnswer(ticket, self._tools, time, stops)

    def _limit(self, param: str) -> TokenLimit:
        """How many tokens the model can read."""
        return TokenLimit(
            what=f"{param}, with its task's token,",
            param=param,
            limit=self._tools.limits.max_source_tokens,
            own_tokens=1,
        )

    async def _read(self, text: str, limit: TokenLimit, time: RequestTime) -> Reading:
        lines = Lines.SINGLE if self.task is Task.SUMMARY else Lines.DOUBLE
        (reading,) = await read([text], [lines], limit, time, self._tools)
        return reading
