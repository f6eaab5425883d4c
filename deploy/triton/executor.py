"""What runs the graphs: the engine's view of a machine.

The scheduler says which rows run and in which slots; an executor owns the sessions and the buffers that those slots
are part of. It hands back what the engine has to know (routes, emissions, how each row stands), never scores: where
they are computed on another device they can stay there, with the chain of rules that chooses from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from .beams import BeamSearch
from .protocol import FinishReason, Source, Task
from .sampling import Sampler
from .slots import Move


class Decoding(Protocol):
    """A row that is decoded, as an executor sees it."""

    @property
    def source(self) -> Source:
        """What it is made from."""

    @property
    def search(self) -> Sampler | BeamSearch:
        """How its tokens are chosen, and those that have been."""

    @property
    def slots(self) -> list[int]:
        """Its slots: one, or one a beam in the order of the search's beams."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Encoded:
    """Sources that have been encoded together."""

    positions: int
    """What each was padded to."""

    routes_B3: np.ndarray
    """FP32, P(generation, qa, summary)."""

    memory: Any
    """The executor's own: what its decoders read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a decoder's step did."""

    finish_reasons: list[FinishReason]
    """How each row stands now, in the order in which they were given."""

    cached_tokens: int
    """Positions of sources and answers that the rows' sequences held in the cache."""


class Executor(Protocol):
    """Whatever it raises ends the rows it was called for.

    Two threads call it: one encodes, extracts and prepares, and the other does the rest meanwhile. The slots' buffers
    are the latter's alone.
    """

    def encode(self, sources: Sequence[Source]) -> Encoded:
        """Encode sources as one batch."""

    def extract(self, encoded: Encoded, indices: Sequence[int], sources: Sequence[Source]) -> list[np.ndarray]:
        """Scores of the tags O, B, I for the sources at some indices of an encoded batch: FP32 [S,3] each."""

    def prepare(self, task: Task, encoded: Encoded, indices: Sequence[int]) -> Any:
        """Compute what a decoder reads of the sources at some indices of an encoded batch."""

    def interrupt(self) -> None:
        """Let what the other thread computes fail soon, for nobody waits for it; does nothing where it cannot."""

    def start(self, task: Task, prepared: Any, indices: Sequence[int], rows: Sequence[Decoding]) -> None:
        """Fill the slots of rows, whose sources are at the given indices of what was prepared."""

    def step(self, task: Task, rows: Sequence[Decoding], bounds: slice) -> Step:
        """Advance the search of every row of a decoder by one token. `bounds`: the slots that they fill."""

    def move(self, moves: Iterable[Move]) -> None:
        """Copy sequences from slot to slot, one move after the other."""

    def trim(self) -> Iterator[None]:
        """Give memory back while no slot is filled, a slice at a time: whoever iterates may stop at any of them."""
