"""Parameters that hold several matrices, one below the other: queries, keys and values; the gates of a recurrence."""

from __future__ import annotations

from torch import Tensor, nn

from model.attention import CrossAttention, SelfAttention
from model.recurrence import GATES, BidirectionalRecurrence

Stack = int | tuple[int, ...]
"""How many matrices of equal size, or their relative sizes where those differ."""


def stack_of(attention: SelfAttention) -> Stack:
    """Of the `qkv` of an attention: relative sizes where groups of heads share keys and values."""
    return 3 if attention.kv_heads == attention.heads else attention.shares


def split_stack(tensor: Tensor, stack: Stack, dimension: int = 0) -> tuple[Tensor, ...]:
    """The matrices, as views. Raises ValueError where they would be no whole rows."""
    shares = (1,) * stack if isinstance(stack, int) else stack
    size = tensor.shape[dimension]
    if size % sum(shares):
        equal = f"{len(shares)} equal matrices" if len(set(shares)) == 1 else f"matrices of relative sizes {shares}"
        raise ValueError(f"{size} rows are not {equal}")
    return tensor.split([share * size // sum(shares) for share in shares], dimension)


def stacked_matrices(model: nn.Module) -> dict[Tensor, Stack]:
    """All such parameters of a model."""
    found: dict[Tensor, Stack] = {}
    for module in model.modules():
        if isinstance(module, SelfAttention):
            found[module.qkv.weight] = stack_of(module)
        elif isinstance(module, CrossAttention):
            found[module.kv.weight] = 2
        elif isinstance(module, BidirectionalRecurrence):
            found |= {each: GATES[module.kind] for each in module.parameters() if each.ndim == 2}
    return found
