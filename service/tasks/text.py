"""Token ids back to text, piece by piece: whole code points only, and nothing that a stop string may swallow.

    token ─▶ bytes ─▶ code points ─▶ held back while it may begin a stop string ─▶ delta

The text that comes out does not depend on how the tokens were grouped: streamed and plain answers are the same.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Detokenizer:
    """Text of one answer. Of several stop strings the one that is complete first ends it."""

    def __init__(self, token_bytes: Sequence[bytes], stops: Sequence[str] = ()) -> None:
        """`token_bytes`: what each id stands for, empty for special tokens."""
        self._token_bytes, self._stops = token_bytes, tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Text that is certain now. Once `stopped`, there is no more."""
        return self._release(self._decoder.decode(self._token_bytes[token]), last=False)

    def finish(self) -> str:
        """What was held back when the answer ended; an incomplete code point becomes U+FFFD."""
        return self._release(self._decoder.decode(b"", True), last=True)

    def _release(self, text: str, *, last: bool) -> str:
        if self.stopped:
            return ""
        self._held += text
        ends = [(at + len(stop), at) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            certain, self._held = self._held[: min(ends)[1]], ""
            return certain
        keep = 0 if last else self._undecided()
        certain, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return certain

    def _undecided(self) -> int:
        """Length of the longest end of the held text that begins a stop string."""
        longest = max(map(len, self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0
