"""A layout: how processes share one network and one batch."""

from __future__ import annotations

from dataclasses import dataclass

SIZES = ("pipeline", "data", "sequence", "tensor")
DIVIDED_BY_TENSOR = ("num_heads", "encoder_ffn", "decoder_ffn", "vocab_size")
"""Sizes of a network that tensor parallelism divides."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Sizes of the four dimensions, outermost first; their product is the number of processes."""

    pipeline: int = 1
    data: int = 1
    sequence: int = 1
    tensor: int = 1
    zero: int = 0
    """0: nothing is divided among the data ranks; 1: optimizer states; 2: gradients too; 3: parameters too."""

    def __post_init__(self) -> None:
        for name in SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.zero not in (0, 1, 2, 3):
            raise ValueError(f"zero must be 0, 1, 2 or 3, got {self.zero}")

    @property
    def world_size(self) -> int:
        """Processes."""
        return self.pipeline * self.data * self.sequence * self.tensor

    def __str__(self) -> str:
        sizes = f"data {self.data} × tensor {self.tensor} × pipeline {self.pipeline} × sequence {self.sequence}"
        return f"{sizes}, ZeRO-{self.zero}"


def undivided(network: object, tensor: int) -> str | None:
    """The first of the sizes to be divided that so many tensor-parallel processes do not divide; None where all do."""
    return next((name for name in DIVIDED_BY_TENSOR if getattr(network, name) % tensor), None)


def tensor_sizes(network: object, limit: int) -> list[int]:
    """Numbers of tensor-parallel processes, up to `limit`, that divide all there is to divide."""
    return [size for size in range(1, limit + 1) if undivided(network, size) is None]
