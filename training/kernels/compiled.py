"""What a run compiles, and that it stays compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import model.cross_entropy
from model.cross_entropy import IGNORE, tied_token_losses
from model.hybrid import HybridUnit
from model.network import HybridModel
from training.memory import repeated_layers

PIECE = 1_024
"""Labels of a compiled piece where a chunk is not full: what is filled up costs little, and a GPU is still busy."""
MOST_GRAPHS = 32
"""Of one function: of a decoder's layer there are two kinds, for two sizes of rows, with and without gradients."""


def compile_layers(network: HybridModel, *, tuned: bool = True, backend: str | Callable = "inductor") -> None:
    """Compile what repeats, one graph for all layers of a kind; of hybrid units what is no recurrence.

    Each size of rows, of which a run has two, gets graphs of its own; token losses have two sizes whatever the batch.
    A run takes its steps inside of `refusing_to_fall_back`.

    Args:
        network: or a pipeline stage's part of one.
        tuned: take the fastest of several tilings of every fused kernel: not for processes that must round alike.
        backend: of torch.compile.
    """
    options: dict[str, Any] = {"dynamic": False, "backend": backend}
    if backend == "inductor":
        options["options"] = {"max_autotune_pointwise": tuned}
    for layer in repeated_layers(network):
        (layer.attention if isinstance(layer, HybridUnit) else layer).compile(**options)
    if together := getattr(network.hybrid.forward, "compile", None):  # where `join_recurrences` put it
        together(**options)
    if "token_losses" not in vars(network):  # those of a divided vocabulary talk to other processes
        network.token_losses = CompiledTokenLosses(network, **options)  # type: ignore[method-assign]


class CompiledTokenLosses:
    """What stands for a network's `token_losses`: compiled for two numbers of labels, whatever number comes.

    Batches have many: the last chunk of a loss is what is left over, and where processes share rows the labels in a
    slice change with every step. Graphs for each would soon be too many for the compiler, which then goes on without:
    in the backward pass of a chunk whose forward pass was compiled, even. So labels come in pieces of the size of a
    whole chunk, or of one small one, the last filled up with labels that are ignored.
    """

    def __init__(self, network: HybridModel, **options: Any) -> None:
        self.network = network
        # In one graph or not at all: what the configuration says of this, a GPU's backward thread does not hear.
        self.compiled = torch.compile(tied_token_losses, fullgraph=True, **options)

    def __call__(self, states_ND: Tensor, labels_N: Tensor) -> Tensor:
        """Cross-entropy [N] as `HybridModel.token_losses`."""
        count = len(labels_N)
        size = model.cross_entropy.CHUNK if count == model.cross_entropy.CHUNK else PIECE
        if missing := max(1, -(-count // size)) * size - count:
            states_ND = functional.pad(states_ND, (0, 0, 0, missing))
            labels_N = functional.pad(labels_N, (0, missing), value=IGNORE)
        embedding_VD = self.network.embedding.weight
        losses = [
            self.compiled(states, embedding_VD, labels)
            for states, labels in zip(states_ND.split(size), labels_N.split(size), strict=True)
        ]
        return torch.cat(losses)[:count]


@contextmanager
def refusing_to_fall_back() -> Iterator[None]:
    """Inside, what is compiled stays so: a compiler at its limit of graphs would go on without, and round otherwise.

    Raises ValueError in place of that.
    """
    from torch._dynamo import config
    from torch._dynamo.exc import FailOnRecompileLimitHit

    try:
        with config.patch(fail_on_recompile_limit_hit=True, recompile_limit=MOST_GRAPHS):
            yield
    except FailOnRecompileLimitHit as error:
        raise ValueError(
            f"run.compile: a function was called with more than {MOST_GRAPHS} different sizes or types, each of which "
            f"needs a graph of its own; set run.compile = false ({error.__cause__ or error})"
        ) from error
