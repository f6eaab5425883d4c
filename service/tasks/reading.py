"""A request's texts become token ids, by its deadline: normalised, and refused first where bytes alone are too many."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from service.errors import ContextLengthExceeded
from service.tasks.deadlines import until
from service.tasks.graphemes import widen
from service.tasks.normalisation import Lines, Normalised, normalise
from service.tasks.tokens import LONG_TEXT, Encoded, TextCodec
from service.tasks.toolkit import RequestTime, Toolkit


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLimit:
    """How long a source may be, and how that is told."""

    what: str
    """The source, as the message names it."""

    param: str
    """The field at fault."""

    limit: int
    own_tokens: int = 0
    """The gateway's own beside the text's, which count too."""

    fix: str = "shorten it"

    def check(self, tokens: int, *, at_least: bool = False) -> None:
        """Raises ContextLengthExceeded for a text of more tokens than there may be."""
        if (total := self.own_tokens + tokens) > self.limit:
            raise ContextLengthExceeded(self.what, total, self.limit, param=self.param, fix=self.fix, at_least=at_least)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """A text as the model reads it."""

    sent: str
    normalised: Normalised
    encoded: Encoded
    """Of the normalised text."""

    @property
    def ids(self) -> np.ndarray:
        """Token ids: INT64 [S]."""
        return self.encoded.ids

    def place(self, first: int, last: int) -> tuple[int, int] | None:
        """The stretch of the text as sent that tokens `first` to `last` were made from, in code points.

        Without white space around it, and with no grapheme cut; None where there is nothing but white space.
        """
        start, end = int(self.encoded.offsets[first, 0]), int(self.encoded.offsets[last, 1])
        text = self.normalised.text[start:end]
        start, end = start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())
        return widen(self.sent, *self.normalised.place(start, end)) if start < end else None


async def read(
    texts: Sequence[str], lines: Sequence[Lines], limit: TokenLimit, time: RequestTime, tools: Toolkit
) -> list[Reading]:
    """Texts that share a limit, as the model reads them. Raises ContextLengthExceeded or DeadlineExceeded."""
    codec = tools.codec
    async with until(time.deadline_s, tools.clock):
        normalised = [await _normalised(text, kept) for text, kept in zip(texts, lines, strict=True)]
        limit.check(sum(codec.fewest_tokens(each.text) for each in normalised), at_least=True)
        found = [
            Reading(text, each, await codec.encode(each.text)) for text, each in zip(texts, normalised, strict=True)
        ]
    limit.check(sum(len(each.ids) for each in found))
    return found


async def read_freely(text: str, lines: Lines, codec: TextCodec) -> Reading:
    """A text of any length, as the model reads it."""
    normalised = await _normalised(text, lines)
    return Reading(text, normalised, await codec.encode(normalised.text))


async def _normalised(text: str, lines: Lines) -> Normalised:
    if len(text) < LONG_TEXT:
        return normalise(text, lines)
    return await asyncio.to_thread(normalise, text, lines)
