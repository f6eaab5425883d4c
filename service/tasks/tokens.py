"""The bundle's tokenizer: texts to ids, with offsets in code points, and what bytes every id stands for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

LONG_TEXT = 8_000
"""Characters from which encoding would hold up the event loop for more than about 2 ms: a thread does it."""


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
            return self._encode(text)
        return await asyncio.to_thread(self._encode, text)

    def _encode(self, text: str) -> Encoded:
        # encode_batch, unlike encode, lets other threads run meanwhile.
        encoding = self._tokenizer.encode_batch([text], add_special_tokens=False)[0]
        return Encoded(
            ids=np.array(encoding.ids, np.int64), offsets=np.array(encoding.offsets, np.int64).reshape(-1, 2)
        )


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
