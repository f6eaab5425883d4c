"""How a chain of blocks is cut into pipeline stages: of even cost, or of even numbers of layers.

Some blocks stand together: the heads on the memory with the hybrid layer, and a decoder's embedding with its first
layer, as in training/parallel/stage.py.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

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
    """Binary search for the lowest limit that no stage needs to exceed, then even shares below it."""
    if len(groups) < stages:
        raise ValueError(f"{len(groups)} groups of blocks do not make {stages} stages: choose at most {len(groups)}")
    costs = [sum(cost(block) for block in group) for group in groups]
    low, high = max(costs), sum(costs)
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if len(_fill(costs, stages, middle)) <= stages else (middle, high)
    ends = _share(costs, stages, high)
    begins = [0, *ends[:-1]]
    return [list(groups[begin:end]) for begin, end in zip(begins, ends, strict=True)]


def _share(costs: Sequence[float], stages: int, limit: float) -> list[int]:
    """Ends of parts below a limit that can be kept, each as near as can be to an even share of what is left."""
    ends: list[int] = []
    begin = 0
    for left in range(stages, 0, -1):
        fair = sum(costs[begin:]) / left
        end, filled = begin + 1, costs[begin]
        while len(costs) - end >= left:
            nearer = filled + costs[end] / 2 <= fair and filled + costs[end] <= limit * (1 + 1e-12)
            if not nearer and len(_fill(costs[end:], left - 1, limit)) <= left - 1:
                break
            filled += costs[end]
            end += 1
        ends.append(end)
        begin = end
    return ends


def _fill(costs: Sequence[float], stages: int, limit: float) -> list[int]:
    """Ends of parts that are filled up to a limit, each leaving at least one group for every later part."""
    ends: list[int] = []
    sums = [0.0, *accumulate(costs)]
    begin = 0
    while begin < len(costs):
        furthest = bisect_right(sums, (sums[begin] + limit) * (1 + 1e-12)) - 1
        leaving = len(costs) - max(0, stages - len(ends) - 1)
        end = max(begin + 1, min(furthest, leaving))
        ends.append(end)
        begin = end
    return ends
