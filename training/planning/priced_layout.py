"""What a layout costs to talk, and whether a cluster and a network can be shared so."""

from __future__ import annotations

from dataclasses import dataclass

from training.layout import Layout, tensor_sizes, undivided
from training.planning.hardware import Cluster, Link
from training.planning.workload import Network, Work

PRECISIONS = ("bf16", "fp32")
LIVE_PARAMETERS = 1e9
"""Gathered parameters that ZeRO-3 keeps from one use to the next (DeepSpeed's default)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PricedLayout(Layout):
    """A layout, and what else its price depends on.

    Ranks are numbered tensor first, then sequence, data and pipeline, so that those who talk most are neighbours.
    """

    micro_rows: int = 1
    """Rows of one micro-batch of one data rank."""
    checkpointing: bool = False
    """Every block keeps its input alone, and is computed again in the backward pass."""
    precision: str = "bf16"

    def __post_init__(self) -> None:
        Layout.__post_init__(self)  # a class with slots is made anew, which super() would not find
        if self.micro_rows < 1:
            raise ValueError(f"micro_rows must be at least 1, got {self.micro_rows}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")

    @property
    def shards(self) -> int:
        """Ranks among which ZeRO divides: those that hold the same parameters, sequence ranks included."""
        return self.data * self.sequence

    def recomputes_stage(self, *, is_last: bool) -> bool:
        """ZeRO-3 in a pipeline keeps a stage's input alone: gathered parameters would stay with the activations.

        Not in the last stage, whose backward pass follows at once.
        """
        return self.zero == 3 and self.pipeline > 1 and not is_last

    def gathers(self, parameters: float, *, is_last: bool) -> int:
        """How often ZeRO-3 gathers a stage's parameters for one micro-batch.

        Once where they stay from the forward pass to the backward one; three times where the forward pass runs twice.
        """
        if self.recomputes_stage(is_last=is_last):
            return 3
        return 1 if parameters <= LIVE_PARAMETERS else 2

    @property
    def name(self) -> str:
        """In the words of `--layout`."""
        sizes = f"data={self.data},tensor={self.tensor},pipeline={self.pipeline},sequence={self.sequence}"
        return f"{sizes},zero={self.zero}"

    def tensor_link(self, cluster: Cluster) -> Link:
        """Among ranks that share a layer."""
        return cluster.link(1, self.tensor)

    def sequence_link(self, cluster: Cluster) -> Link:
        """Among ranks that share a row."""
        return cluster.link(self.tensor, self.sequence)

    def shards_link(self, cluster: Cluster) -> Link:
        """Among ranks that hold the same parameters."""
        return cluster.link(self.tensor, self.shards)

    def pipeline_link(self, cluster: Cluster) -> Link:
        """From a stage to the next."""
        return cluster.link(self.tensor * self.shards, self.pipeline)


def micro_batches(layout: PricedLayout, rows: int) -> int:
    """Micro-batches of a step of `rows` rows. Raises ValueError where they do not come out even."""
    share = layout.data * layout.micro_rows
    if rows % share:
        raise ValueError(
            f"{rows} rows a step do not divide into {layout.data} data ranks × micro-batches of {layout.micro_rows}: "
            f"take a multiple of {share}"
        )
    return rows // share


def check_layout(config: Network, work: Work, layout: PricedLayout, gpus: int) -> None:
    """Raises ValueError, saying what would fit, for a layout that the network or the cluster cannot take."""
    if layout.world_size != gpus:
        others = layout.tensor * layout.pipeline * layout.sequence
        fix = (
            f"data={gpus // others} would"
            if gpus % others == 0
            else f"tensor × pipeline × sequence must divide {gpus}, and is {others}"
        )
        raise ValueError(
            f"{layout.data} data × {layout.tensor} tensor × {layout.pipeline} pipeline × {layout.sequence} sequence = "
            f"{layout.world_size} does not make {gpus} GPUs: {fix}"
        )
    if name := undivided(config, layout.tensor):
        fitting = ", ".join(map(str, tensor_sizes(config, config.num_heads)))
        size = getattr(config, name)
        raise ValueError(f"tensor = {layout.tensor} does not divide {name} = {size}: choose from {fitting}")
    if layout.pipeline > config.layers:
        raise ValueError(
            f"pipeline = {layout.pipeline} exceeds the {config.layers} layers: a stage would have no parameters"
        )
    if not sequence_fits(config, work, layout.tensor, layout.sequence):
        fitting = ", ".join(str(n) for n in range(1, 65) if sequence_fits(config, work, layout.tensor, n))
        raise ValueError(
            f"sequence = {layout.sequence} must divide the {config.num_heads // layout.tensor} heads of a tensor rank "
            f"and {work.source_tokens} source tokens into whole recurrent blocks of {config.recurrent_block}: "
            f"choose from {fitting}"
        )


def sequence_fits(config: Network, work: Work, tensor: int, sequence: int) -> bool:
    """Whether rows fall into equal parts of whole recurrent blocks, and heads into equal shares for Ulysses."""
    if sequence == 1:
        return True
    block, heads = config.recurrent_block, config.num_heads // tensor
    if block is None or heads % sequence:
        return False
    return work.source_tokens % (sequence * block) == 0
