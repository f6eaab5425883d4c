"""The text of one row, as it comes: pieces, and with the last one why it ended, what it used and where time went."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Literal

from deploy.triton.protocol import FinishReason, RowTimings, RowUpdate
from service.batching.rows import RowTicket
from service.tasks.text import Detokenizer
from service.tasks.toolkit import RequestTime, Toolkit

Reason = Literal["stop", "length"]
REASONS: dict[FinishReason, Reason] = {FinishReason.STOP: "stop", FinishReason.LENGTH: "length"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of a request."""

    prompt_tokens: int
    """As the model reads them, the task's token included."""

    completion_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Timings:
    """Where the time went. Of an answer that a stop string ended the gateway's own measures stand in for the
    engine's, which come one step later: its queue counts as prefill then."""

    queue_s: float
    prefill_s: float
    decode_s: float
    ttft_s: float
    """From the request's arrival to its first token at the gateway: to the whole answer, where it is not streamed."""

    total_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """What is known once an answer is whole."""

    finish_reason: Reason
    """`stop`: the model or a stop string ended it; `length`: it reached the most tokens asked for."""

    usage: Usage
    timings: Timings


@dataclass(frozen=True, slots=True)
class Piece:
    """More of an answer's text."""

    text: str
    ending: Ending | None = None
    """With the last piece."""


class ReadyAnswer:
    """A text that is known without a model: streamed, one piece."""

    def __init__(self, text: str, usage: Usage, reason: Reason, tools: Toolkit, time: RequestTime) -> None:
        self._text, self._usage, self._reason = text, usage, reason
        self._tools, self._time = tools, time

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """The only piece."""
        metrics, spent_s = self._tools.metrics, self._tools.clock.now_s() - self._time.arrived_s
        metrics.prompt_tokens.inc(self._usage.prompt_tokens)
        metrics.generation_tokens.inc(self._usage.completion_tokens)
        metrics.time_to_first_token.observe(spent_s)
        timings = Timings(queue_s=0.0, prefill_s=0.0, decode_s=0.0, ttft_s=spent_s, total_s=spent_s)
        yield Piece(self._text, Ending(finish_reason=self._reason, usage=self._usage, timings=timings))

    async def whole(self) -> tuple[str, Ending]:
        """All text at once."""
        async for piece in self.pieces():
            assert piece.ending is not None, "the only piece is the last"
            return piece.text, piece.ending
        raise AssertionError("there is one piece")


class TextAnswer:
    """Reads one row. Pieces hold whole code points, and nothing of a stop string."""

    def __init__(self, ticket: RowTicket, tools: Toolkit, time: RequestTime, stops: Sequence[str] = ()) -> None:
        self._ticket, self._tools, self._time = ticket, tools, time
        self._detokenizer = Detokenizer(tools.codec.token_bytes, stops)
        self._tokens = 0
        self._first_s = 0.0
        self._last_s = 0.0

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Pieces with text, and the last. Gives the row up where it is closed early.

        Raises DeadlineExceeded, Unavailable or InferenceFailed.
        """
        try:
            async for update in self._ticket.updates():
                piece = self.read(update)
                if piece.ending:
                    # Now, not when the reader comes back: after a stop string the row would go on.
                    self._ticket.cancel()
                if piece.text or piece.ending:
                    yield piece
                if piece.ending:
                    return
        finally:
            self._ticket.cancel()

    async def whole(self) -> tuple[str, Ending]:
        """All text at once."""
        pieces = [piece async for piece in self.pieces()]
        ending = pieces[-1].ending
        assert ending is not None, "the last piece has the ending"
        return "".join(piece.text for piece in pieces), ending

    def read(self, update: RowUpdate) -> Piece:
        """The text of an update. After the piece with the ending there must be no more."""
        tokens = update.tokens.tolist()
        before = self._tokens
        text = "".join(self._decode(tokens))
        self._observe(self._tokens - before, first=before == 0)
        finished = update.finish_reason is not FinishReason.RUNNING
        if finished and not self._detokenizer.stopped:
            text += self._detokenizer.finish()
        if self._detokenizer.stopped:
            return Piece(text, self._end("stop", update.timings))
        if finished:
            return Piece(text, self._end(REASONS[update.finish_reason], update.timings))
        return Piece(text)

    def _decode(self, tokens: list[int]) -> list[str]:
        """Texts of tokens, up to the one that completes a stop string."""
        texts = []
        for token in tokens:
            self._tokens += 1
            texts.append(self._detokenizer.add(token))
            if self._detokenizer.stopped:
                break
        return texts

    def _observe(self, new_tokens: int, *, first: bool) -> None:
        """Count tokens that have just come."""
        metrics, now_s = self._tools.metrics, self._tools.clock.now_s()
        if first and not self._first_s:
            self._first_s = now_s
            metrics.prompt_tokens.inc(self._ticket.source.cost)
            metrics.time_to_first_token.observe(now_s - self._time.arrived_s)
        elif new_tokens:
            metrics.inter_token_latency.observe((now_s - self._last_s) / new_tokens)
        self._last_s = now_s
        metrics.generation_tokens.inc(new_tokens)

    def _end(self, finish_reason: Reason, engine: RowTimings | None) -> Ending:
        metrics, now_s, pending = self._tools.metrics, self._tools.clock.now_s(), self._ticket.pending
        queue_s = pending.sent_s - pending.arrived_s
        if engine is None:
            prefill_s, decode_s = self._first_s - pending.sent_s, now_s - self._first_s
        else:
            queue_s, prefill_s, decode_s = queue_s + engine.queue_s, engine.prefill_s, engine.decode_s
        metrics.queue_time.observe(queue_s)
        metrics.prefill_time.observe(prefill_s)
        metrics.decode_time.observe(decode_s)
        if not self._ticket.row.stream and self._tokens:
            metrics.inter_token_latency.observe(decode_s / self._tokens)
        return Ending(
            finish_reason=finish_reason,
            usage=Usage(prompt_tokens=self._ticket.source.cost, completion_tokens=self._tokens),
            timings=Timings(
                queue_s=queue_s,
                prefill_s=prefill_s,
                decode_s=decode_s,
                ttft_s=self._first_s - self._time.arrived_s,
                total_s=now_s - self._time.arrived_s,
            ),
        )
