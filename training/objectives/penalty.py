"""Penalties on parameters: what is added to the objective once a step, whatever the layout."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Penalty(Protocol):
    """A function of single parameters, the sum over a parameter's elements: of parts of one it has to add up."""

    name: str
    """In metrics; not an objective's."""

    def __call__(self, parameter: str, weight: Tensor) -> Tensor | None:
        """The penalty on a parameter, a number that a gradient can be taken of; None where it has none.

        Args:
            parameter: its name in the whole network.
            weight: its fp32 value; of the tensor-parallel part that this process holds.
        """
