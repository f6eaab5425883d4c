"""Where one request ends and the next may begin, and how much of a head has come.

The parser cannot be stopped, so it is fed pieces that hold no more than one request's end: up to an empty line, where
heads and bodies in chunks end, or to the end of a body whose length was given. Empty lines elsewhere do no harm.
"""

from __future__ import annotations

import re

from service.errors import HeadersTooLarge
from service.settings import LimitSettings

EMPTY_LINE = re.compile(rb"\n\r?\n")
LINE_OVERHEAD = 4
"""Colon, space and line end of a header."""


class Pieces:
    """What the parser may be fed next."""

    body_left: int | None = None
    """Bytes of a body whose length was given, while it comes."""

    _last_two = b""
    """Of the bytes that the parser has had: an empty line may come in two packets."""

    def next_end(self, data: memoryview) -> int:
        """Length of the next piece, from 1 to that of the data, of which there is some."""
        if self.body_left:
            return min(len(data), self.body_left)
        begun = len(self._last_two)
        across = EMPTY_LINE.search(self._last_two + bytes(data[:2]))
        if across is not None and across.end() > begun:
            return across.end() - begun
        found = EMPTY_LINE.search(data)
        return found.end() if found is not None else len(data)

    def fed(self, piece: memoryview) -> None:
        """The parser has had it."""
        self._last_two = (self._last_two + bytes(piece[-2:]))[-2:]


class HeadCount:
    """URL and headers, trailers included, of one request."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._bytes = self._headers = 0

    def url(self, size: int) -> None:
        """Some of the URL. Raises HeadersTooLarge, as all of them do."""
        self._bytes += size
        self._check(self._bytes)

    def header(self, name: bytes, value: bytes) -> None:
        """A whole header."""
        self._headers += 1
        self._bytes += len(name) + len(value) + LINE_OVERHEAD
        self._check(self._bytes)

    def kept(self, size: int) -> None:
        """Bytes that the parser keeps, because no line of them has ended."""
        self._check(size)

    def _check(self, size: int) -> None:
        if size > self._limits.head_bytes or self._headers > self._limits.headers:
            raise HeadersTooLarge(
                f"URL and {self._headers} headers have at least {size} bytes, and {self._limits.head_bytes} is the "
                f"limit of bytes, {self._limits.headers} of headers: send less"
            )
