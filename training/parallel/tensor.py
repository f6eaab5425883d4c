"""Tensor parallelism: every process of a ring holds some heads, some inner units and some of the vocabulary.

Shoeybi et al. 2019, "Megatron-LM", section 3: the first matrix of a pair is divided by rows of its weight, the second
by columns, so a pair needs one sum over the ring in the forward pass and one in the backward pass:

    x ─ copied ─▶ [ up_t ─▶ gelu ─▶ down_t ] ─ summed ─▶ + bias          t: this process' part
        (backward: summed)                   (backward: copied)

Divided: the attention of all layers and units (by heads), the feed-forward networks, and the embedding, which is the
output layer too (by tokens; its cross-entropy never gathers the logits). Key and value heads that the processes cannot
share evenly, as three among two, are not divided: every process holds the whole matrix, computes with the rows that its
own heads read, and the gradients are summed. Repeated on every process: norms, positions, recurrences, the router, the
heads' small layers, the pointer's copy attention. Their gradients are equal on all, for what they read is.
"""

from __future__ import annotations

import math
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
from training.stacks import split_stack, stack_of


@dataclass(frozen=True, slots=True)
class Cut:
    """How a parameter is divided: along `dimension`, in each of its blocks (query, key and value) apart."""

    dimension: int
    blocks: int | tuple[int, ...] = 1
    """How many of equal size, or their relative sizes."""

    def part(self, whole: Tensor, rank: int, size: int) -> Tensor:
        """What process `rank` of `size` holds: a copy, for a view would keep the whole in memory."""
        parts = [block.chunk(size, self.dimension)[rank] for block in self._split(whole)]
        return torch.cat(parts, self.dimension).clone(memory_format=torch.contiguous_format)

    def whole(self, parts: list[Tensor]) -> Tensor:
        """The parameter, from the parts of all processes in order."""
        blocks = zip(*(self._split(part) for part in parts), strict=True)
        return torch.cat([torch.cat(block, self.dimension) for block in blocks], self.dimension)

    def _split(self, tensor: Tensor) -> tuple[Tensor, ...]:
        return split_stack(tensor, self.blocks, self.dimension)


ROWS, COLUMNS = Cut(0), Cut(1)


def cuts_of(network: HybridModel, size: int = 1) -> dict[str, Cut]:
    """How every parameter that `size` processes divide is divided, by name; the rest is repeated."""
    cuts = {"embedding.weight": ROWS}
    for name, module in network.named_modules():
        if isinstance(module, SelfAttention):
            cuts |= {f"{name}.out.weight": COLUMNS}
            if module.kv_heads % size == 0:
                cuts |= {f"{name}.qkv.weight": Cut(0, stack_of(module))}
        elif isinstance(module, CrossAttention):
            cuts |= {f"{name}.q.weight": ROWS, f"{name}.out.weight": COLUMNS}
            if module.kv_heads % size == 0:
                cuts |= {f"{name}.kv.weight": Cut(0, 2)}
        elif isinstance(module, FeedForward):
            cuts |= {f"{name}.up.weight": ROWS, f"{name}.up.bias": ROWS, f"{name}.down.weight": COLUMNS}
    return cuts


def apply_tensor_parallel(network: HybridModel, ring: Ring) -> None:
    """Keep this process' part of a whole network, and make its modules work together with the other parts."""
    if ring.size == 1:
        return
    cuts = cuts_of(network, ring.size)
    for module in list(network.modules()):
        if isinstance(module, (SelfAttention, CrossAttention)):
            into = ("qkv",) if isinstance(module, SelfAttention) else ("q", "kv")
            _replace(module, into, "out", ring)
            if module.kv_heads % ring.size:
                setattr(module, into[-1], RowsOfWhole(module, into[-1], ring))
            group = module.heads // module.kv_heads
            module.heads //= ring.size
            module.kv_heads = module.heads // math.gcd(module.heads, group)
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


class RowsOfWhole(nn.Module):
    """The last Linear `into` an attention, held whole on every process and computed by the rows that its heads read.

    The heads of a process read key and value heads in equal runs, as long as its heads and the groups of the whole
    allow; a key and value head that more runs read is computed for each.
    """

    def __init__(self, attention: SelfAttention | CrossAttention, into: str, ring: Ring) -> None:
        super().__init__()
        self.ring = ring
        self.weight = attention.get_submodule(into).weight
        heads, kv_heads = attention.heads, attention.kv_heads
        own, group = heads // ring.size, heads // kv_heads
        first = ring.rank * own
        read = [head // group for head in range(first, first + own, math.gcd(own, group))]
        queries = heads if isinstance(attention, SelfAttention) else 0
        rows = [*range(first, first + own)] if queries else []
        rows += [queries + head for head in read] + [queries + kv_heads + head for head in read]
        self._heads, self._rows = queries + 2 * kv_heads, rows

    def forward(self, hidden: Tensor) -> Tensor:
        """[…,D] → this process' outputs."""
        weight_AED = _Copied.apply(self.weight, self.ring).unflatten(0, (self._heads, -1))
        rows_A = torch.tensor(self._rows, device=hidden.device)
        weight = weight_AED.index_select(0, rows_A).flatten(0, 1)
        return functional.linear(_Copied.apply(hidden, self.ring), weight)


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
