"""How a chain of blocks is cut into pipeline stages: of even cost, or of even numbers of layers.

Some blocks stand together: the heads on the memory with the hybrid layer, and a decoder's embedding with its first
layer, as in training/parallel/stage.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from training.chain import split_evenly
from training.planning.blocks import Block

SPLITS = ("cost", "layers")


def cut(blocks: Sequence[Block], stages: int, split: str, cost: Callable[[Block], float]) -> list[list[Block]]:
    """Consecutive parts of the chain, one a stage.

    Args:
        blocks: the chain.
        stages: how many parts.
        split: "cost" makes the most expensive stage as cheap as can be; "layers" gives every stage the same number of
            encoder and decoder layers, and what stands between two layers to the stage of the earlier one.
        cost: of a block, in any unit.

    Raises ValueError where the layers do not come out even, or fewer blocks than stages.
    """
    groups = together(blocks)
    parts = _even_layers(groups, stages) if split == "layers" else _even_cost(groups, stages, cost)
    return [[block for group in part for block in group] for part in parts]


def together(blocks: Sequence[Block]) -> list[list[Block]]:
    """The chain as groups that no cut divides."""
    groups: list[list[Block]] = []
    for block in blocks:
        follows_entry = bool(groups) and groups[-1][-1].kind in ("writer embedding", "pointer embedding")
        if follows_entry or block.kind in ("masked head", "span head", "router"):
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups


def layer_count(stage: Sequence[Block]) -> int:
    """Encoder and decoder layers of a stage."""
    return sum(_is_layer(block) for block in stage)


def _is_layer(block: Block) -> bool:
    return block.kind in ("encoder layer", "writer layer", "pointer layer")


def _even_layers(groups: Sequence[list[Block]], stages: int) -> list[list[list[Block]]]:
    layers = sum(layer_count(group) for group in groups)
    if layers % stages:
        fitting = ", ".join(str(n) for n in range(1, layers + 1) if layers % n == 0)
        raise ValueError(f"{layers} layers do not make {stages} equal stages: choose from {fitting}")
    parts: list[list[list[Block]]] = [[]]
    filled = 0
    for group in groups:
        if filled == layers // stages and layer_count(group):
            parts.append([])
            filled = 0
        parts[-1].append(group)
        filled += layer_count(group)
    return parts


def _even_cost(groups: Sequence[list[Block]], stages: int, cost: Callable[[Block], float]) -> list[list[list[Block]]]:
    if len(groups) < stages:
        raise ValueError(f"{len(groups)} groups of blocks do not make {stages} stages: choose at most {len(groups)}")
    parts = split_evenly([sum(cost(block) for block in group) for group in groups], stages)
    return [list(groups[part.start : part.stop]) for part in parts]
