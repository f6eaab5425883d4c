"""Tensor parallelism: every process of a ring holds some heads, some inner units and some of the vocabulary.

Shoeybi et al. 2019, "Megatron-LM", section 3: the first matrix of a pair is divided by rows of its weight, the second
by columns, so a pair needs one sum over the ring in the forward pass and one in the backward pass:

    x ─ copied ─▶ [ up_t ─▶ gelu ─▶ down_t ] ─ summed ─▶ + bias          t: this process' part
        (backward: summed)                   (backward: copied)

Divided: the attention of all layers and units (by heads), the feed-forward networks, and the embedding, which is the
output layer too (by tokens; its cross-entropy never gathers the logits). Repeated on every process: norms, positions,
recurrences, the router, the heads' small layers, the pointer's copy attention. Their gradients are equal on all, for
what they read is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from model.attention import CrossAttention, SelfAttention
from model.cross_entropy import IGNORE
from model.layers import FeedForward
from model.network import HybridModel
from training.parallel.mesh import Ring


@dataclass(frozen=True, slots=True)
class Cut:
    """How a parameter is divided: along `dimension`, in each of `blocks` equal parts (query, key and value) apart."""

    dimension: int
    blocks: int = 1

    def part(self, whole: Tensor, rank: int, size: int) -> Tensor:
        """What process `rank` of `size` holds: a copy, for a view would keep the whole in memory."""
        parts = whole.unflatten(self.dimension, (self.blocks, size, -1)).select(self.dimension + 1, rank)
        return parts.flatten(self.dimension, self.dimension + 1).clone(memory_format=torch.contiguous_format)

    def whole(self, parts: list[Tensor]) -> Tensor:
        """The parameter, from the parts of all processes in order."""
        blocks = [part.unflatten(self.dimension, (self.blocks, -1)) for part in parts]
        return torch.cat(blocks, self.dimension + 1).flatten(self.dimension, self.dimension + 1)


ROWS, COLUMNS = Cut(0), Cut(1)


def cuts_of(network: HybridModel) -> dict[str, Cut]:
    """How every divided parameter of a network is divided, by name; the rest is repeated."""
    cuts = {"embedding.weight": ROWS}
    for name, module in network.named_modules():
        if isinstance(module, SelfAttention):
            cuts |= {f"{name}.qkv.weight": Cut(0, 3), f"{name}.out.weight": COLUMNS}
        elif isinstance(module, CrossAttention):
            cuts |= {f"{name}.q.weight": ROWS, f"{name}.kv.weight": Cut(0, 2), f"{name}.out.weight": COLUMNS}
        elif isinstance(module, FeedForward):
            cuts |= {f"{name}.up.weight": ROWS, f"{name}.up.bias": ROWS, f"{name}.down.weight": COLUMNS}
    return cuts


def apply_tensor_parallel(network: HybridModel, ring: Ring) -> None:
    """Keep this process' part of a whole network, and make its modules work together with the other parts."""
    if ring.size == 1:
        return
    cuts = cuts_of(network)
    for module in list(network.modules()):
        if isinstance(module, (SelfAttention, CrossAttention)):
            module.heads //= ring.size
            into = ("qkv",) if isinstance(module, SelfAttention) else ("q", "kv")
            _replace(module, into, "out", ring)
        elif isinstance(module, FeedForward):
            _replace(module, ("up",), "down", ring)
    for name, parameter in network.named_parameters():
        if name in cuts:
            parameter.data = cuts[name].part(parameter.data, ring.rank, ring.size)
    if isinstance(network.embedding, nn.Embedding):  # not every pipeline stage has it
        part = VocabularyPart(network.embedding, ring)
        network.embedding = part  # type: ignore[assignment]
        network.token_losses = part.token_losses  # type: ignore[method-assign]


def _replace(module: nn.Module, into: tuple[str, ...], out: str, ring: Ring) -> None:
    for name in into:
        linear = module.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        setattr(module, name, FirstOfPair(linear, ring))
    linear = module.get_submodule(out)
    assert isinstance(linear, nn.Linear)
    setattr(module, out, SecondOfPair(linear, ring))


class FirstOfPair(nn.Module):
    """A Linear whose outputs are divided."""

    def __init__(self, linear: nn.Linear, ring: Ring) -> None:
        super().__init__()
        self.ring = ring
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """[…,D] → this process' outputs."""
        return functional.linear(_Copied.apply(hidden, self.ring), self.weight, self.bias)


class SecondOfPair(nn.Module):
    """A Linear whose inputs are divided."""

    def __init__(self, linear: nn.Linear, ring: Ring) -> None:
        super().__init__()
        self.ring = ring
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """This process' inputs → […,D], equal on all processes."""
        summed = _Summed.apply(functional.linear(hidden, self.weight), self.ring)
        return summed if self.bias is None else summed + self.bias


class VocabularyPart(nn.Module):
    """Rows of the embedding: V / size tokens, from rank · V / size on."""

    def __init__(self, embedding: nn.Embedding, ring: Ring) -> None:
        super().__init__()
        self.weight, self.count = embedding.weight, len(embedding.weight)
        self.ring, self.first = ring, ring.rank * self.count

    def forward(self, tokens: Tensor) -> Tensor:
        """Token ids […] → embeddings […,D]."""
        own, index = self._own(tokens)
        found = functional.embedding(index, self.weight)
        return _Summed.apply(torch.where(own[..., None], found, 0), self.ring)

    def token_losses(self, states_ND: Tensor, labels_N: Tensor) -> Tensor:
        """Cross-entropy [N] as `HybridModel.token_losses`, each process making the logits of its own tokens only."""
        logits_NV = functional.linear(_Copied.apply(states_ND, self.ring), self.weight).float()
        highest_N1 = logits_NV.detach().amax(1, keepdim=True)
        dist.all_reduce(highest_N1, dist.ReduceOp.MAX, group=self.ring.group)
        own_N, index_N = self._own(labels_N)
        target_N = torch.where(own_N, logits_NV.gather(1, index_N[:, None])[:, 0], 0)
        sums_N = (logits_NV - highest_N1).exp().sum(1)
        sums_N, target_N = _Summed.apply(torch.stack([sums_N, target_N]), self.ring).unbind(0)
        losses_N = sums_N.log() + highest_N1[:, 0] - target_N
        return torch.where(labels_N == IGNORE, 0, losses_N)

    def _own(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens are this process', and their rows here; row 0 for the others."""
        index = tokens.long() - self.first
        own = (index >= 0) & (index < self.count)
        return own, torch.where(own, index, 0)


def divided_parameters(network: nn.Module) -> Iterator[nn.Parameter]:
    """Those of which every process of the ring holds another part."""
    for module in network.modules():
        if isinstance(module, FirstOfPair):
            yield from module.parameters()
        elif isinstance(module, (SecondOfPair, VocabularyPart)):
            yield from (each for name, each in module.named_parameters() if name == "weight")


class _Copied(torch.autograd.Function):
    """Equal on all processes; each one's gradient is a part of the whole."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, ring: Ring) -> Tensor:
        ctx.ring = ring
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient, group=ctx.ring.group)
        return gradient, None


class _Summed(torch.autograd.Function):
    """The sum of what the processes have; the gradient of each part is the sum's."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, ring: Ring) -> Tensor:
        summed = part.contiguous().clone()
        dist.all_reduce(summed, group=ring.group)
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
