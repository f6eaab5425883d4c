"""What ranks that share a layer send each other: sums of tensor parallelism, exchanges of sequence parallelism.

    tensor      two sums over ranks in an encoder layer's forward pass and two in its backward one (Shoeybi et al. 2019,
                section 3); three in a decoder layer, and one more for the gradient of the memory; vocabulary loss
    sequence    exchanges of heads for tokens around every attention (Jacobs et al. 2023, Ulysses); halos of recurrences
                from either neighbour; what heads gather

Counts are those of training/parallel/tensor.py and sequence.py.
"""

from __future__ import annotations

from training.planning.blocks import TAGS, Block
from training.planning.hardware import Cluster
from training.planning.memory import VALUE_BYTES
from training.planning.messages import BACKWARD, FORWARD, Message, make_message
from training.planning.priced_layout import PricedLayout
from training.planning.workload import Network, Work

LOSS_SUMS = 3
"""Floats a target that ranks with parts of the vocabulary add up: maximum; sum of exponentials, the label's logit."""
TURNS = 2
"""Parts of a batch under sequence parallelism: one computes while the other's exchange is on its way."""
NORM_BYTES = 4
"""Autocast computes norms in float32, and so the gradients of what reads their results."""


def tensor_messages(config: Network, work: Work, layout: PricedLayout, block: Block, cluster: Cluster) -> list[Message]:
    """Sums over the tensor ranks for one block."""
    if layout.tensor == 1:
        return []
    d = config.d_model
    sources, targets = work.rows * work.source_tokens, target_tokens(work, block.kind)
    memory = decoder_rows(work, block.kind) * work.source_tokens
    values: dict[str, tuple[list[float], list[float]]] = {
        "embedding": ([sources], []),
        "encoder layer": ([sources] * 2, [sources] * 2),
        "hybrid layer": ([sources] * config.hybrid_units, [sources] * config.hybrid_units),
        "writer embedding": ([targets], []),
        "pointer embedding": ([targets], []),
        "writer layer": ([targets] * 3, [targets] * 3 + [memory]),
        "pointer layer": ([targets] * 3, [targets] * 3 + [memory]),
    }
    forward, backward = values.get(block.kind, ([], []))
    if block.targets:
        backward = [*backward, block.targets]
    again = forward if layout.checkpointing and block.kind.endswith("layer") else []
    link, messages = layout.tensor_link(cluster), []
    value = VALUE_BYTES[layout.precision]
    sizes = ((FORWARD, forward, value), (BACKWARD, again, value), (BACKWARD, backward, NORM_BYTES))
    for when, tokens, each in sizes:
        if tokens:
            size = sum(tokens) * d * each / layout.sequence
            messages.append(make_message("tensor", "all_reduce", when, size, len(tokens), layout.tensor, link))
    if block.targets:
        floats = LOSS_SUMS * block.targets * 4 / layout.sequence
        messages.append(make_message("tensor", "all_reduce", FORWARD, floats, 2, layout.tensor, link))
    return messages


def sequence_messages(
    config: Network, work: Work, layout: PricedLayout, block: Block, cluster: Cluster
) -> list[Message]:
    """Exchanges of heads for tokens, halos, and what heads gather, for one block.

    A rank with two neighbours is priced; those at the ends of the rows send one halo less.
    """
    ranks = layout.sequence
    if ranks == 1:
        return []
    value, link, messages = VALUE_BYTES[layout.precision], layout.sequence_link(cluster), []
    again = 2 if layout.checkpointing and block.kind.endswith("layer") else 1

    def add(purpose: str, operation: str, size: float, calls: int) -> None:
        for when, times in ((FORWARD, 1), (BACKWARD, again)):
            messages.append(make_message(purpose, operation, when, times * size, times * calls, ranks, link))

    exchanged, calls = _exchanges(config, work, block.kind)
    if calls:
        add("sequence", "all_to_all", exchanged * config.d_model / layout.tensor / ranks * value, calls * TURNS)
    halos = {"hybrid layer": config.hybrid_units, "span head": 1}.get(block.kind, 0)
    if halos:
        rows = work.rows if block.kind == "hybrid layer" else work.asked_rows
        size = halos * 2 * rows * config.recurrent_halo * config.d_model * value
        add("halo", "send", size, halos * (TURNS if block.kind == "hybrid layer" else 1))
    gathered, calls = _gathered_bytes(config, work, block.kind, ranks, value)
    if calls:
        add("sequence", "all_to_all", gathered, calls)
    return messages


def _exchanges(config: Network, work: Work, kind: str) -> tuple[float, int]:
    """States of width D that are exchanged around a block's attentions, over all ranks, and in how many calls."""
    sources = work.rows * work.source_tokens
    match kind:
        case "encoder layer":
            return 4 * sources, 2
        case "hybrid layer":
            return 4 * sources * config.hybrid_units, 2 * config.hybrid_units
    return 0.0, 0


def _gathered_bytes(config: Network, work: Work, kind: str, ranks: int, value: int) -> tuple[float, int]:
    """What one rank's heads send to make whole results, and in how many calls: to gather is to send all the same."""
    targets = target_tokens(work, kind)
    match kind:
        case "writer embedding" | "pointer embedding":
            # Slices of all rows' memory become whole memories of some rows, which a rank then decodes alone.
            return decoder_rows(work, kind) * work.source_tokens / ranks * config.d_model * value, 1
        case "masked head":
            return ranks * work.guesses * 4, 1
        case "span head":
            return work.asked_rows * work.source_tokens * TAGS * value, 1
        case "router":
            return ranks * work.rows * config.d_model * value, 1
        case "writer head":
            # States, then losses.
            return targets * (config.d_model * value + 4), 2
        case "pointer head":
            # And two sums a target of the copy distribution.
            return targets * (config.d_model * value + 4 + 2 * ranks * 4), 3
    return 0.0, 0


def target_tokens(work: Work, kind: str) -> float:
    """Target tokens of the decoder that a block belongs to; 0 for another block."""
    if kind.startswith("writer"):
        return work.written_rows * work.target_tokens
    return work.summed_rows * work.summary_tokens if kind.startswith("pointer") else 0.0


def decoder_rows(work: Work, kind: str) -> float:
    """Rows of the decoder that a block belongs to; 0 for another block."""
    if kind.startswith("writer"):
        return work.written_rows
    return work.summed_rows if kind.startswith("pointer") else 0.0
