"""The bundle's tokenizer: texts to ids, with offsets in code points, and what bytes every id stands for."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

LONG_TEXT = 8_000
"""Characters whose encoding holds up the event loop for about 2 ms. Longer texts are encoded in pieces of about this
size by a thread, one piece of one text after the other: the tokenizer needs some 200 bytes of memory a token."""

BORDER = re.compile(r"(?<=\w)(?=[ \n])")
"""Where a text may be cut without changing a token: no piece of the tokenizer's pattern has white space behind
another character."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoded:
    """A tokenised text."""

    ids: np.ndarray
    """INT64 [S]."""

    offsets: np.ndarray
    """INT64 [S,2]: first code point of every token, and the one behind its last."""


class TextCodec:
    """Tokenises plain text: a special token's name in it is read as the letters it is written with."""

    def __init__(self, folder: Path, special_tokens: Mapping[str, int]) -> None:
        """Load `tokenizer.json`.

        Raises ValueError where it is damaged, not of bytes, or its special tokens have other ids.
        """
        path = folder / "tokenizer.json"
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            # The tokenizers package raises bare Exceptions.
            raise ValueError(f"{path} cannot be loaded ({error}): fetch or export the bundle again") from error
        for token, index in special_tokens.items():
            if self._tokenizer.token_to_id(token) != index:
                raise ValueError(f"{path} has no token {token} of id {index}: fetch or export the bundle again")
        self._tokenizer.encode_special_tokens = True
        self.special = dict(special_tokens)
        self._worker = ThreadPoolExecutor(1, "tokenizer")
        try:
            self.token_bytes = _token_bytes(self._tokenizer, set(special_tokens.values()))
        except LookupError as error:
            raise ValueError(
                f"{path} is no byte-level vocabulary ({error}): fetch or export the bundle again"
            ) from error

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return len(self.token_bytes)

    async def encode(self, text: str) -> Encoded:
        """Tokenise without special tokens."""
        if len(text) < LONG_TEXT:
            return self._encode(text, 0)
        loop, begin, parts = asyncio.get_running_loop(), 0, []
        for piece in pieces(text):
            parts.append(await loop.run_in_executor(self._worker, self._encode, piece, begin))
            begin += len(piece)
        return Encoded(
            ids=np.concatenate([part.ids for part in parts]), offsets=np.concatenate([part.offsets for part in parts])
        )

    def _encode(self, text: str, begin: int) -> Encoded:
        """Tokens of a text that is found `begin` code points into a longer one."""
        # encode_batch, unlike encode, lets other threads run meanwhile.
        encoding = self._tokenizer.encode_batch([text], add_special_tokens=False)[0]
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        return Encoded(ids=np.array(encoding.ids, np.int64), offsets=offsets + begin)


def pieces(text: str, size: int = LONG_TEXT) -> Iterator[str]:
    """A text in pieces of `size` characters and however many more it takes to the next border."""
    begin = 0
    while (border := BORDER.search(text, begin + size)) is not None:
        yield text[begin : border.start()]
        begin = border.start()
    yield text[begin:]


def _token_bytes(tokenizer: Tokenizer, special: set[int]) -> list[bytes]:
    """The bytes of every id of a byte-level vocabulary; none for special tokens."""
    byte_of = _byte_of_character()
    table = [b""] * tokenizer.get_vocab_size(with_added_tokens=True)
    for token, index in tokenizer.get_vocab(with_added_tokens=True).items():
        if index not in special:
            table[index] = bytes(byte_of[character] for character in token)
    return table


def _byte_of_character() -> dict[str, int]:
    """The alphabet of byte-level BPE (Radford et al. 2019): printable bytes stand for themselves, the others for the
    characters from U+0100 on, in their order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}
