"""The two tasks that write, generation and summary: `[task token] text` goes in, tokens come out."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np

from deploy.triton.protocol import Sampling, Source, Task
from service.errors import InvalidInput
from service.tasks.answers import TextAnswer
from service.tasks.normalisation import Lines
from service.tasks.reading import TokenLimit, read
from service.tasks.toolkit import RequestTime, Toolkit, check_at_most

DEFAULT_NEW_TOKENS = 128
SUMMARY_BEAMS = 4
SUMMARY_MIN_TOKENS = 1
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
    ) -> TextAnswer:
        """Queue one text, or the ids of its tokens.

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
        source = Source(np.concatenate([[self._task_token], await self._ids(text, param, time)]))
        row_stream = stream or bool(stops)
        ticket = self._tools.rows.submit(
            self.task, source, sampling, stream=row_stream, deadline_s=time.deadline_s, tier=time.tier
        )
        return TextAnswer(ticket, self._tools, time, stops)

    async def _ids(self, text: str | Sequence[int], param: str, time: RequestTime) -> np.ndarray:
        """Token ids of a text that the model can read."""
        limit = TokenLimit(
            what=f"{param}, with its task's token,",
            param=param,
            limit=self._tools.limits.max_source_tokens,
            own_tokens=1,
        )
        if isinstance(text, str):
            lines = Lines.SINGLE if self.task is Task.SUMMARY else Lines.DOUBLE
            (reading,) = await read([text], [lines], limit, time, self._tools)
            return reading.ids
        limit.check(len(text))
        return np.array(text, np.int64)
