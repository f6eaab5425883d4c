"""GPU types, the networks between them, and how much of either a run is assumed to reach.

Peaks are the vendor's: what a datasheet promises, dense, without sparsity. Nothing reaches them; the fractions that a
plan assumes are in `Assumptions`, and every one of them can be changed on the command line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

GB, GIB = 10**9, 2**30


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """One GPU, as its datasheet has it."""

    name: str
    memory_bytes: float
    """The datasheet's GB, taken as 10⁹ bytes; what the driver offers differs by a few per cent either way."""
    bf16_flops: float
    """FLOP/s of matrix products in bf16, dense."""
    memory_bandwidth: float
    """Bytes/s between the GPU and its own memory."""
    link_bandwidth: float
    """Bytes/s to the other GPUs of its node, one way."""
    network: str
    """Key of NETWORKS: what its vendor's own system has between nodes."""
    source: str
    """Where the figures are from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Network:
    """What joins the nodes."""

    name: str
    bandwidth: float
    """Bytes/s of one GPU out of its node, one way."""
    source: str


def _network(name: str, gigabits: float, source: str) -> Network:
    return Network(name=name, bandwidth=gigabits * 1e9 / 8, source=source)


NETWORKS: Mapping[str, Network] = {
    network.name: network
    for network in (
        _network("hdr200", 200, "InfiniBand HDR, an adapter a GPU (NVIDIA DGX A100 datasheet)"),
        _network("ndr400", 400, "InfiniBand NDR, an adapter a GPU (NVIDIA DGX H100 datasheet)"),
        _network("ethernet400", 50, "400 Gb/s Ethernet for a node of eight GPUs"),
        _network("ethernet100", 12.5, "100 Gb/s Ethernet for a node of eight GPUs"),
        _network("ethernet25", 3.125, "25 Gb/s Ethernet for a node of eight GPUs"),
    )
}


def _gpu(
    name: str, gigabytes: float, teraflops: float, memory: float, link: float, network: str, source: str
) -> tuple[str, Gpu]:
    """`memory` and `link` in GB/s."""
    gpu = Gpu(
        name=name,
        memory_bytes=gigabytes * GB,
        bf16_flops=teraflops * 1e12,
        memory_bandwidth=memory * GB,
        link_bandwidth=link * GB,
        network=network,
        source=source,
    )
    return name, gpu


GPUS: Mapping[str, Gpu] = dict(
    (
        _gpu(
            "a100-40gb", 40, 312, 1_555, 300, "hdr200", "NVIDIA A100 datasheet, SXM4 40 GB; NVLink 600 GB/s both ways"
        ),
        _gpu(
            "a100-80gb", 80, 312, 2_039, 300, "hdr200", "NVIDIA A100 datasheet, SXM4 80 GB; NVLink 600 GB/s both ways"
        ),
        _gpu("a100-80gb-pcie", 80, 312, 1_935, 32, "hdr200", "NVIDIA A100 datasheet, PCIe 80 GB; PCIe 4 ×16"),
        _gpu("h100-80gb", 80, 989.4, 3_350, 450, "ndr400", "NVIDIA H100 datasheet, SXM5; NVLink 900 GB/s both ways"),
        _gpu("h100-80gb-pcie", 80, 756, 2_000, 64, "ndr400", "NVIDIA H100 datasheet, PCIe; PCIe 5 ×16"),
        _gpu("h200", 141, 989.4, 4_800, 450, "ndr400", "NVIDIA H200 datasheet, SXM; NVLink 900 GB/s both ways"),
        _gpu("b200", 180, 2_250, 7_700, 900, "ndr400", "NVIDIA HGX B200 datasheet; NVLink 1,800 GB/s both ways"),
        _gpu("l40s", 48, 362, 864, 32, "hdr200", "NVIDIA L40S datasheet; PCIe 4 ×16"),
        _gpu("l4", 24, 121, 300, 32, "ethernet100", "NVIDIA L4 datasheet; PCIe 4 ×16"),
    )
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Assumptions:
    """What a plan takes for granted about a machine; measured where a note says so, chosen otherwise."""

    matmul_fraction: float = 0.6
    """Of the peak, in matrix products."""
    memory_fraction: float = 0.8
    """Of the bandwidth of the GPU's memory, in elementwise work."""
    network_fraction: float = 0.8
    """Of a link's bandwidth, in collectives and messages."""
    recurrent_step_s: float = 14e-6
    """Of one step of one direction, however small its batch. One H100, docs/decisions/0003 and docs/planning.md: 14 to
    18 µs in eager mode, 4 to 7 µs under a CUDA graph."""
    link_latency_s: float = 10e-6
    """Of one collective or message inside a node."""
    network_latency_s: float = 20e-6
    """Of one collective or message between nodes."""
    reserved_bytes: float = 2.5 * GB
    """CUDA context, libraries' workspaces, communicators' buffers, and holes in the allocator's memory."""

    def __post_init__(self) -> None:
        for name in ("matmul_fraction", "memory_fraction", "network_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {getattr(self, name)}")
        for name in ("recurrent_step_s", "link_latency_s", "network_latency_s", "reserved_bytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """What a message of a group travels over."""

    bandwidth: float
    """Bytes/s that one GPU sends, as far as the assumptions think it can be reached."""
    latency_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Equal GPUs in equal nodes."""

    gpu: Gpu
    gpus: int
    network: Network
    gpus_per_node: int = 8
    assumptions: Assumptions = Assumptions()

    def __post_init__(self) -> None:
        if self.gpus < 1:
            raise ValueError(f"--gpus must be at least 1, got {self.gpus}")
        if self.gpus_per_node < 1:
            raise ValueError(f"--gpus-per-node must be at least 1, got {self.gpus_per_node}")

    def link(self, stride: int, size: int) -> Link:
        """The slowest link of a group of `size` ranks that are `stride` apart; ranks fill the nodes in order."""
        assumed = self.assumptions
        if stride * size <= self.gpus_per_node and self.gpus_per_node % (stride * size) == 0:
            bandwidth, latency_s = self.gpu.link_bandwidth, assumed.link_latency_s
        else:
            bandwidth, latency_s = self.network.bandwidth, assumed.network_latency_s
        return Link(bandwidth=bandwidth * assumed.network_fraction, latency_s=latency_s)


def make_cluster(
    gpu: str,
    gpus: int,
    *,
    interconnect: str | None = None,
    gpus_per_node: int = 8,
    assumptions: Assumptions | None = None,
) -> Cluster:
    """A cluster by the names of its parts. Raises ValueError for unknown ones, with those it knows."""
    if gpu not in GPUS:
        raise ValueError(f"unknown GPU {gpu!r}: choose from {', '.join(GPUS)}")
    network = interconnect or GPUS[gpu].network
    if network not in NETWORKS:
        raise ValueError(f"unknown interconnect {network!r}: choose from {', '.join(NETWORKS)}")
    return Cluster(
        gpu=GPUS[gpu],
        gpus=gpus,
        network=NETWORKS[network],
        gpus_per_node=gpus_per_node,
        assumptions=assumptions or Assumptions(),
    )


DEVICE_WORDS = (
    ({"a100"}, "a100-80gb"),
    ({"h100", "pcie"}, "h100-80gb-pcie"),
    ({"h100", "hbm3"}, "h100-80gb"),
    ({"h200"}, "h200"),
    ({"b200"}, "b200"),
    ({"l40s"}, "l40s"),
    ({"l4"}, "l4"),
)
"""Words of a device's name, and whose peak it then has. "NVIDIA H100 80GB HBM3" is the SXM board's name."""


def peak_flops(device_name: str) -> float | None:
    """Dense bf16 FLOP/s of a device by the name that CUDA gives it; None for one that the table does not know."""
    words = set(re.findall(r"[a-z0-9]+", device_name.lower()))
    if "mig" in words:
        return None  # a slice of a GPU
    return next((GPUS[key].bf16_flops for known, key in DEVICE_WORDS if known <= words), None)
