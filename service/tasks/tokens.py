"""The bundle's tokenizer: texts to ids, with offsets in code points, and what bytes every id stands for."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from service.tasks.borders import holds_border, pieces

LONG_TEXT = 8_000
"""Characters whose encoding holds up the event loop for about 2 ms. Longer texts are encoded by a thread in pieces of
about this size, a piece of one text after a piece of another: the tokenizer needs some 200 bytes of memory a token."""

LONG_PIECE = 4 * LONG_TEXT
"""A piece above this, which had no border, waits for others of its kind: it may take a second."""

PROBE = "The bridge isn't  old:\r\n\t1871年，光速 é 👩‍👩‍👧\x00 "
"""A text that a tokenizer must give back byte for byte."""


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
        self._sizes = np.array([len(each) for each in self.token_bytes])
        self.longest_token = int(self._sizes.max())
        """Bytes of the longest token."""

        probed = self._tokenizer.encode(PROBE, add_special_tokens=False).ids
        if b"".join(self.token_bytes[index] for index in probed) != PROBE.encode():
            raise ValueError(f"{path} changes the texts that it reads: fetch or export the bundle again")
        for added in self._tokenizer.get_added_tokens_decoder().values():
            if not added.special and holds_border(added.content):
                raise ValueError(
                    f"{path} has the added token {added.content!r}, which a cut may divide: "
                    "train a tokenizer without it"
                )
        self._pieces = ThreadPoolExecutor(1, "tokenizer")
        self._long_pieces = ThreadPoolExecutor(1, "tokenizer-long")

    @property
    def vocabulary(self) -> int:
        """Number of ids."""
        return len(self.token_bytes)

    def fewest_tokens(self, text: str) -> int:
        """No encoding of the text has fewer: what the longest token leaves to know without tokenising."""
        return -(-len(text.encode()) // self.longest_token)

    async def encode(self, text: str) -> Encoded:
        """Tokenise without special tokens. Cancelling it leaves at most one piece to be finished in vain."""
        if len(text) < LONG_TEXT:
            return self._encode(text, 0)
        loop, begin, parts = asyncio.get_running_loop(), 0, []
        for piece in pieces(text, LONG_TEXT):
            worker = self._pieces if len(piece) <= LONG_PIECE else self._long_pieces
            parts.append(await loop.run_in_executor(worker, self._encode, piece, begin))
            begin += len(piece)
        return Encoded(
            ids=np.concatenate([part.ids for part in parts]), offsets=np.concatenate([part.offsets for part in parts])
        )

    def _encode(self, text: str, begin: int) -> Encoded:
        """Tokens of a text that is found `begin` code points into a longer one."""
        # encode_batch_fast, unlike encode, lets other threads run meanwhile; it leaves the offsets out, which as lists
        # of tuples held up every thread longer than the encoding itself.
        found = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids
        if len(found) <= LONG_TEXT:
            ids = np.array(found, np.int64)
        else:
            # By parts, so that other threads get a turn in between.
            ids = np.concatenate(
                [np.array(found[at : at + LONG_TEXT], np.int64) for at in range(0, len(found), LONG_TEXT)]
            )
        return Encoded(ids=ids, offsets=self._offsets(ids, text, begin))

    def _offsets(self, ids: np.ndarray, text: str, begin: int) -> np.ndarray:
        """Which code points each token touches: its bytes follow those of the token before it."""
        sizes, data = self._sizes[ids], text.encode()
        behind = sizes.cumsum()
        assert len(data) == (behind[-1] if len(ids) else 0), "the tokens of a byte-level vocabulary are the text"
        offsets = np.empty((len(ids), 2), np.int64)
        if text.isascii():
            offsets[:, 0], offsets[:, 1] = behind - sizes, behind
        else:
            point_of_byte = ((np.frombuffer(data, np.uint8) & 0xC0) != 0x80).cumsum()
            offsets[:, 0], offsets[:, 1] = point_of_byte[behind - sizes] - 1, point_of_byte[behind - 1]
        offsets += begin
        return offsets


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
