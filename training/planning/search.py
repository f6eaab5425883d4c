"""Every legal layout of a cluster, priced: the fastest first, and why others were refused."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from training.layout import tensor_sizes
from training.planning.hardware import Cluster
from training.planning.priced_layout import PricedLayout, check_layout, micro_batches, sequence_fits
from training.planning.pricing import Draft, Job, Price, draft, price
from training.planning.stages import SPLITS

SIMULATED = 24
"""Layouts of the shortest estimates whose step is simulated."""
MICRO_ROWS = (1, 2, 4, 8, 16, 32, 64)
MEMORY_REASON = "does not fit in memory"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The answer of a search."""

    prices: tuple[Price, ...]
    """Fastest first."""
    tried: int
    fitting: int
    refused: dict[str, int]
    """Layouts by the reason why they are not among the fitting ones."""
    uneven: str | None
    """Why data ranks cannot make up the whole cluster; None where they can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What a layout must have; the rest is searched."""

    sizes: Mapping[str, int]
    """Of `data`, `tensor`, `pipeline`, `sequence`, `zero`, `micro_rows`, and `checkpointing` as 0 or 1."""
    split: str = "cost"
    precision: str = "bf16"

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.sizes) - set(WISHES)):
            raise ValueError(f"unknown dimension {unknown[0]!r} of a layout: choose from {', '.join(WISHES)}")
        if self.split not in SPLITS:
            raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")

    def allows(self, name: str, value: int) -> bool:
        """Whether a dimension may have a value."""
        return self.sizes.get(name, value) == value


WISHES = ("data", "tensor", "pipeline", "sequence", "zero", "micro_rows", "checkpointing")
ANY = Wish(sizes={})


def search(job: Job, cluster: Cluster, wish: Wish = ANY, *, top: int = 5) -> Plan:
    """Price the layouts of a cluster.

    Raises ValueError where a wish cannot be laid out on this cluster, saying what would fit, and where nothing fits.
    """
    drafts: list[Draft] = []
    refused: Counter[str] = Counter()
    reasons: list[str] = []
    tried = 0
    for layout in layouts(job, cluster, wish):
        tried += 1
        try:
            drafts.append(draft(job, cluster, layout, wish.split))
        except ValueError as error:
            refused[MEMORY_REASON if "GiB" in str(error) else str(error)] += 1
            reasons.append(f"{layout.name}, micro-batches of {layout.micro_rows} rows: {error}")
    if not tried:
        raise ValueError(_why_nothing(job, cluster, wish))
    if not drafts:
        raise ValueError(
            f"none of {tried} layouts fits {cluster.gpus} × {cluster.gpu.name}; the last one, {reasons[-1]}"
        )
    drafts.sort(key=lambda each: each.estimate_s)
    prices = sorted((price(job, cluster, each) for each in drafts[: max(SIMULATED, top)]), key=lambda each: each.step_s)
    return Plan(
        prices=tuple(prices[:top]),
        tried=tried,
        fitting=len(drafts),
        refused=dict(refused),
        uneven=_uneven(round(job.work.rows), cluster.gpus, wish),
    )


def _uneven(rows: int, gpus: int, wish: Wish) -> str | None:
    """That a step's rows do not divide among the GPUs, and which numbers would."""
    others = math.prod(wish.sizes.get(name, 1) for name in ("tensor", "pipeline", "sequence"))
    ranks = gpus // others
    if "data" in wish.sizes or rows % ranks == 0:
        return None
    numbers = [ranks * n for n in (rows // ranks, rows // ranks + 1) if n]
    divisors = [n for n in range(1, rows + 1) if rows % n == 0]
    fitting = [max(n for n in divisors if n < ranks), *[n for n in divisors if n > ranks][:1]]
    return (
        f"{rows:,} rows a step do not divide by {ranks:,}: at most {math.gcd(rows, ranks):,} of {ranks:,} can be data "
        f"ranks, and the others must share layers or rows. --rows {_either(numbers)} would divide, and so would "
        f"--gpus {_either([n * others for n in fitting])}"
    )


def _either(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))


def layouts(job: Job, cluster: Cluster, wish: Wish) -> Iterator[PricedLayout]:
    """Legal layouts: all factors of the cluster, ZeRO stages that divide something, and sizes of micro-batches.

    Tensor and sequence ranks stay within a node: their messages are on the path of every layer.
    """
    network, rows = job.network, round(job.work.rows)
    for tensor, sequence, pipeline in _sizes(job, cluster):
        data = cluster.gpus // (tensor * sequence * pipeline)
        sizes = {"data": data, "tensor": tensor, "sequence": sequence, "pipeline": pipeline}
        if pipeline > network.layers or not all(wish.allows(name, size) for name, size in sizes.items()):
            continue
        asked = wish.sizes.get("micro_rows")
        # Sequence ranks share the rows of decoders: with fewer rows than ranks some would have none.
        sizes_ = (asked,) if asked else tuple(n for n in MICRO_ROWS if n % sequence == 0)
        micro_rows = [n for n in sizes_ if rows % (n * data) == 0]
        zeros = (0, 1, 2, 3) if data * sequence > 1 else (0,)
        for rows_, zero, checkpointing in product(micro_rows, zeros, (False, True)):
            if wish.allows("zero", zero) and wish.allows("checkpointing", checkpointing):
                yield PricedLayout(
                    data=data,
                    tensor=tensor,
                    sequence=sequence,
                    pipeline=pipeline,
                    zero=zero,
                    micro_rows=rows_,
                    checkpointing=checkpointing,
                    precision=wish.precision,
                )


def _sizes(job: Job, cluster: Cluster) -> Iterator[tuple[int, int, int]]:
    """Numbers of tensor, sequence and pipeline ranks that the cluster and the network can be divided into."""
    for tensor in tensor_sizes(job.network, min(cluster.gpus, cluster.gpus_per_node)):
        for sequence in range(1, cluster.gpus_per_node // tensor + 1):
            inner = tensor * sequence
            if cluster.gpus % inner == 0 and sequence_fits(job.network, job.work, tensor, sequence):
                rest = cluster.gpus // inner
                yield from ((tensor, sequence, n) for n in range(1, rest + 1) if rest % n == 0)


def _why_nothing(job: Job, cluster: Cluster, wish: Wish) -> str:
    """What stands in the way of every layout that a wish allows."""
    names = ("data", "tensor", "pipeline", "sequence")
    sizes = {name: wish.sizes.get(name, 1) for name in names}
    if "data" not in wish.sizes:
        others = sizes["tensor"] * sizes["pipeline"] * sizes["sequence"]
        sizes["data"] = max(1, cluster.gpus // others)
    elif missing := [name for name in names if name not in wish.sizes]:
        known = math.prod(wish.sizes[name] for name in names if name in wish.sizes)
        if cluster.gpus % known == 0:
            sizes[missing[0]] = cluster.gpus // known
    layout = PricedLayout(
        data=sizes["data"],
        tensor=sizes["tensor"],
        pipeline=sizes["pipeline"],
        sequence=sizes["sequence"],
        zero=wish.sizes.get("zero", 0),
        micro_rows=wish.sizes.get("micro_rows", 1),
    )
    try:
        check_layout(job.network, job.work, layout, cluster.gpus)
        micro_batches(layout, round(job.work.rows))
    except ValueError as error:
        return str(error)
    if layout.tensor * layout.sequence > cluster.gpus_per_node:
        return (
            f"tensor × sequence = {layout.tensor * layout.sequence} exceed the {cluster.gpus_per_node} GPUs of a node"
        )
    return f"zero={layout.zero} divides nothing where data × sequence is 1: take zero=0"
