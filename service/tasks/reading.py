"""A request's texts become token ids: refused before that where their bytes alone are too many, and by the deadline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import ContextLengthExceeded
from service.tasks.deadlines import until
from service.tasks.tokens import Encoded
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


async def read(texts: Sequence[str], limit: TokenLimit, time: RequestTime, tools: Toolkit) -> list[Encoded]:
    """The tokens of texts that share a limit. Raises ContextLengthExceeded or DeadlineExceeded."""
    codec = tools.codec
    limit.check(sum(map(codec.fewest_tokens, texts)), at_least=True)
    async with until(time.deadline_s, tools.clock):
        found = [await codec.encode(text) for text in texts]
    limit.check(sum(len(each.ids) for each in found))
    return found
