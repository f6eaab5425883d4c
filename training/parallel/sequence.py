"""Sequence-block parallelism: every rank of a group holds one slice of all source rows.

    source ids [B,S/N] ─▶ encoder ─▶ hybrid ─▶ memory [B,S/N,D] ─▶ heads ─▶ whole results, the same on every rank
                            │           │                            │
                            │           └ halos, with neighbours     └ small things, and whole memories of some rows
                            └ Ulysses

`apply_sequence_parallel` puts other methods on a model, from outside; the model's own code stays. Its encoder takes
and gives slices, and everything behind it has the contract that it has on one device: whole targets and labels go in,
whole results come out. What is large — attention, decoders, vocabulary logits, copy distribution — is shared.

Transfers hide behind computation. A batch's rows are cut into parts that take turns (`together`): while one part's
exchange is on its way, the others compute; so do the units of the hybrid layer, and the losses among one another.
docs/sequence-parallelism.md says what that brings.

Every rank's loss is the whole loss, so the gradient of their sum is the group's size times the whole gradient:
average the gradients over the group, as over data-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from model.attention import RowPositions, SelfAttention, key_mask
from model.encoder import EncoderLayer
from model.hybrid import HybridLayer, HybridUnit
from model.network import HybridModel
from training.data.batches import Batch
from training.objectives.losses import Losses
from training.objectives.objective import Targets
from training.parallel.halo import Halo
from training.parallel.link import Link
from training.parallel.sequence_heads import SplitHeads, local_lengths
from training.parallel.sequence_losses import split_losses
from training.parallel.ulysses import self_attention
from training.turns import Steps, run, together

TURNS = 4
"""Parts of a batch that take turns: with 2, less is hidden (docs/sequence-parallelism.md)."""


def apply_sequence_parallel(
    model: HybridModel, group: dist.ProcessGroup | None, *, turns: int = TURNS, link: Link | None = None
) -> SequenceParallel:
    """Let the ranks of a group compute a model together, each on its slice of the source.

    From now on `encode` takes the rank's slice of the source positions [B,S/N] and gives the memory's; slices are
    equal, stand in the order of the ranks, and hold whole blocks of the recurrence; lengths are those of the whole
    rows. Every method that reads a memory takes this slice, and gives whole results, equal on all ranks.

    Args:
        model: the network; where tensor parallelism shares its heads, apply that first.
        group: the ranks; None for all.
        turns: parts of a batch that take turns, to hide one's transfers behind the others' computation; 1 waits for
            each transfer where it starts.
        link: what the ranks are connected by; by default the group's own collectives.

    Raises:
        ValueError: heads that the group cannot share evenly, a recurrence that is not in blocks, no turns.
    """
    if turns < 1:
        raise ValueError(f"a batch has at least 1 part, got {turns}")
    link = link or Link(group, blocking=turns == 1)
    _check(model, link.size)
    return SequenceParallel(model, link, turns)


class SequenceParallel:
    """A model's encoder on slices of rows, and its heads."""

    def __init__(self, model: HybridModel, link: Link, turns: int) -> None:
        self.model, self.link, self.turns = model, link, turns
        self.heads = heads = SplitHeads(model, link)
        self.calls_layers = False
        """Whether `encode` calls the layers, which wait, for what else was put around their forward passes."""
        _replace(
            model,
            encode=self.encode,
            forward=self.forward,
            greedy=_refuse_greedy,
            source_positions=self.source_positions,
        )
        for name in ("task_logits", "emissions", "decoder_states", "target_losses", "masked_token_losses"):
            _replace(model, **{name: _waiting(getattr(heads, name))})
        _replace(model.pointer, log_target=_waiting(heads.log_target), log_mixture=_waiting(heads.log_mixture))
        _replace(model.encoder, begin=self.begin)
        for layer in model.encoder.layers:
            _replace(layer, forward=_waiting(self.encoder_layer, layer))
        _replace(model.hybrid, forward=_waiting(self.hybrid_layer, model.hybrid))
        for unit in getattr(model.hybrid, "units", []):  # which another stage of a pipeline may hold
            _replace(unit, forward=_waiting(self.hybrid_unit, unit))

    def losses(self, batch: Batch, targets: Targets | None = None) -> Losses:
        """`compute_losses` of a batch whose source is this rank's slice, the losses in turns."""
        return split_losses(self.heads, self.encode(batch.source_BS, batch.lengths_B), batch, targets)

    def own_source(self, memory_BsD: Tensor, lengths_B: Tensor) -> tuple[Tensor, Tensor | None]:
        """What a decoder reads for this rank's rows, for callers that walk its layers: memories and their mask."""
        memory_bSD = run(self.heads.own_memories(memory_BsD))
        return memory_bSD, key_mask(self.heads.own_rows(lengths_B).clamp(min=1), memory_bSD.shape[1])

    def own_rows(self, whole: Tensor) -> Tensor:
        """This rank's rows of a decoder's targets, [B,…] → [B/N,…]; rows of zeros where they do not suffice."""
        return self.heads.own_rows(whole)

    def all_rows(self, states_bTD: Tensor, rows: int) -> Tensor:
        """Every rank's rows of a decoder's states, [B/N,T,D] → [B,T,D]."""
        return run(self.heads.all_rows(states_bTD, rows))

    def forward(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Masked-token logits of the slice, [B,s] → [B,s,V]."""
        if lengths is None:
            raise ValueError("a slice does not tell how long its rows are: give lengths, or apply encode and lm_logits")
        return self.model.lm_logits(self.encode(input_ids, lengths))

    def encode(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Slices of token ids [B,s] → slices of the memory [B,s,D]; lengths are those of the whole rows.

        Raises ValueError where a slice is no whole number of blocks.
        """
        size, block, ranks = input_ids.shape[1], self.model.config.recurrent_block, self.link.size
        if size % block:
            raise ValueError(
                f"a slice of {size} tokens is no multiple of recurrent_block = {block}: pad the rows to a multiple of "
                f"{block * ranks} tokens, {block} for each of {ranks} ranks"
            )
        positions = self.source_positions(lengths, size)
        tasks = [
            self._encode(input_ids[rows], _rows(lengths, rows), positions._replace(mask=_rows(positions.mask, rows)))
            for rows in self._turns(input_ids)
        ]
        return torch.cat(run(together(tasks)))

    def source_positions(self, lengths: Tensor | None, size: int) -> RowPositions:
        """Of the whole rows that slices of `size` tokens are of."""
        return HybridModel.source_positions(self.model, lengths, size * self.link.size)

    def begin(self, embedded_BsD: Tensor, lengths_B: Tensor | None) -> Tensor:
        """What the first encoder layer reads, [B,s,D]."""
        encoder, size = self.model.encoder, embedded_BsD.shape[1]
        place = {"begin": self.link.rank * size, "whole": self.link.size * size}
        return encoder.dropout(encoder.positions(embedded_BsD, lengths_B, **place))

    def _encode(self, input_ids: Tensor, lengths_B: Tensor | None, positions: RowPositions) -> Steps[Tensor]:
        encoder = self.model.encoder
        hidden_BsD = self.begin(self.model.embedding(input_ids), lengths_B)
        for layer in encoder.layers:
            if self.calls_layers:
                hidden_BsD = layer(hidden_BsD, positions)
            else:
                hidden_BsD = yield from self.encoder_layer(cast("EncoderLayer", layer), hidden_BsD, positions)
        return (yield from self.hybrid_layer(self.model.hybrid, encoder.norm(hidden_BsD), lengths_B, positions))

    def encoder_layer(self, layer: EncoderLayer, hidden_BsD: Tensor, positions: RowPositions) -> Steps[Tensor]:
        """[B,s,D] → [B,s,D]; the positions are those of whole rows, here and below."""
        mixed_BsD = yield from self_attention(self.link, layer.attention, layer.attention_norm(hidden_BsD), positions)
        hidden_BsD = hidden_BsD + layer.dropout(mixed_BsD)
        return hidden_BsD + layer.dropout(layer.feed_forward(layer.feed_forward_norm(hidden_BsD)))

    def hybrid_layer(
        self, layer: HybridLayer, hidden_BsD: Tensor, lengths_B: Tensor | None, positions: RowPositions
    ) -> Steps[Tensor]:
        """[B,s,D] → [B,s,D]."""
        if self.calls_layers:
            states = [unit(hidden_BsD, lengths_B, positions) for unit in layer.units]
        else:
            units = [
                self.hybrid_unit(cast("HybridUnit", unit), hidden_BsD, lengths_B, positions) for unit in layer.units
            ]
            states = yield from together(units)
        return layer.weigh(states)

    def hybrid_unit(
        self, unit: HybridUnit, hidden_BsD: Tensor, lengths_B: Tensor | None, positions: RowPositions
    ) -> Steps[Tensor]:
        """[B,s,D] → [B,s,D]."""
        mixed_BsD = yield from self_attention(self.link, unit.attention, hidden_BsD, positions)
        halo = Halo(self.link, mixed_BsD, unit.recurrence.halo)
        yield
        recurred_BsD = unit.recurrence(mixed_BsD, local_lengths(self.link, mixed_BsD, lengths_B), halo.finish())
        return unit.add(hidden_BsD, mixed_BsD, recurred_BsD)

    def _turns(self, rows: Tensor) -> list[slice]:
        """The parts of a batch; a batch without rows is one part, for every rank computes the same graph."""
        count = max(1, min(self.turns, len(rows)))
        return [slice(part * len(rows) // count, (part + 1) * len(rows) // count) for part in range(count)]


def _check(model: HybridModel, ranks: int) -> None:
    """Raises ValueError where a group cannot share a model."""
    if model.config.recurrent_block is None:
        raise ValueError(
            "recurrent_block = None is one recurrence over whole rows, which cannot be split: choose a block size, "
            "as the presets do"
        )
    for module in (*model.encoder.modules(), *model.hybrid.modules()):
        if isinstance(module, SelfAttention) and module.heads % ranks:
            fitting = [str(size) for size in range(1, module.heads + 1) if module.heads % size == 0]
            raise ValueError(
                f"{ranks} sequence-parallel ranks cannot share {module.heads} attention heads evenly: "
                f"choose {' or '.join(fitting)} ranks"
            )


def _replace(module: nn.Module, **methods: Callable[..., Any]) -> None:
    for name, method in methods.items():
        assert hasattr(module, name), name
        setattr(module, name, method)


def _waiting(steps: Callable[..., Steps[Tensor]], *first: nn.Module) -> Callable[..., Tensor]:
    """A method that waits for each exchange as it comes, for callers that know nothing of steps."""
    # torch.compile would trace into an exchange, whose buffer is filled behind its back, and find no gradient.
    return torch.compiler.disable(lambda *arguments, **named: run(steps(*first, *arguments, **named)))


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _refuse_greedy(*_: object, **__: object) -> None:
    raise ValueError("a model under sequence parallelism trains: load its weights into another to decode")
