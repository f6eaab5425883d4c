"""Sequence-block parallelism: every rank of a group holds one slice of all rows, source and target.

    source ids [B,S/N] ─▶ encoder ─▶ hybrid ─▶ memory [B,S/N,D] ─▶ heads ─▶ whole results, the same on every rank
                            │           │                            │
                            │           └ halos, with neighbours     └ small things: scores, losses, target states
                            └ Ulysses

`apply_sequence_parallel` puts other methods on a model, from outside; the model's own code stays. Its encoder takes
and gives slices, and everything behind it has the contract that it has on one device: whole targets and labels go in,
whole results come out. What is large — attention, vocabulary logits, the copy distribution — is shared by the ranks.

Transfers hide behind computation. A batch's rows are cut into parts that take turns (`together`): while one part's
exchange is on its way, the others compute; units of the hybrid layer take turns as well. docs/sequence-parallelism.md
says what that brings.

Every rank's loss is the whole loss, so the gradient of their sum is the group's size times the whole gradient:
average the gradients over the group, as over data-parallel ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from model.attention import CrossAttention, SelfAttention, key_mask
from model.encoder import EncoderLayer
from model.generative import Decoder, DecoderLayer
from model.hybrid import HybridLayer, HybridUnit
from model.network import HybridModel
from training.parallel.halo import Halo
from training.parallel.link import Exchange, Link, Steps, run, together
from training.parallel.sequence_heads import SplitHeads, local_lengths
from training.parallel.ulysses import cross_attention, self_attention, start_keys_values

PARTS = 2
"""Parts of a batch that take turns."""


def apply_sequence_parallel(
    model: HybridModel, group: dist.ProcessGroup | None, *, parts: int = PARTS, link: Link | None = None
) -> None:
    """Let the ranks of a group compute a model together, each on its slice of the source.

    From now on `encode` takes the rank's slice of the source positions [B,S/N] and gives the memory's; slices are
    equal, stand in the order of the ranks, and hold whole blocks of the recurrence; lengths are those of the whole
    rows. Every method that reads a memory takes this slice, and gives whole results, equal on all ranks.

    Args:
        model: the network; where tensor parallelism shares its heads, apply that first.
        group: the ranks; None for all.
        parts: parts of a batch that take turns, to hide one's transfers behind the others' computation; 1 waits for
            each transfer where it starts.
        link: what the ranks are connected by; by default the group's own collectives.

    Raises:
        ValueError: heads that the group cannot share evenly, a recurrence that is not in blocks, no parts.
    """
    if parts < 1:
        raise ValueError(f"a batch has at least 1 part, got {parts}")
    link = link or Link(group, blocking=parts == 1)
    if link.size == 1:
        return
    _check(model, link.size)
    slices = _Slices(model, link, parts)
    heads = SplitHeads(model, link)
    _replace(model, encode=slices.encode, decoder_states=slices.decoder_states, forward=slices.forward)
    _replace(model, greedy=_refuse_greedy, task_logits=heads.task_logits, emissions=heads.emissions)
    _replace(model, target_losses=heads.target_losses, masked_token_losses=heads.masked_token_losses)
    _replace(model.pointer, log_target=heads.log_target, log_mixture=heads.log_mixture)
    for layer in model.encoder.layers:
        _replace(layer, forward=_waiting(slices.encoder_layer, layer))
    _replace(model.hybrid, forward=_waiting(slices.hybrid_layer, model.hybrid))
    for decoder in (model.generative, model.pointer):
        for layer in decoder.layers:
            _replace(layer, forward=_waiting(slices.decoder_layer, layer))


class _Slices:
    """Encoder and decoders on slices of rows."""

    def __init__(self, model: HybridModel, link: Link, parts: int) -> None:
        self.model, self.link, self.parts = model, link, parts

    def forward(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Masked-token logits of the slice, [B,s] → [B,s,V]."""
        if lengths is None:
            raise ValueError("a slice does not tell how long its rows are: give lengths, or apply encode and lm_logits")
        return self.model.lm_logits(self.encode(input_ids, lengths))

    def encode(self, input_ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Slices of token ids [B,s] → slices of the memory [B,s,D]; lengths are those of the whole rows.

        Raises ValueError where a slice is no whole number of blocks.
        """
        size, block = input_ids.shape[1], self.model.config.recurrent_block
        if size % block:
            raise ValueError(
                f"a slice of {size} tokens is no multiple of recurrent_block = {block}: pad the rows to a multiple of "
                f"{block * self.link.size} tokens, {block} for each of {self.link.size} ranks"
            )
        mask = key_mask(lengths, size * self.link.size)
        tasks = [
            self._encode(input_ids[rows], _rows(lengths, rows), _rows(mask, rows)) for rows in self._turns(input_ids)
        ]
        return torch.cat(run(together(tasks)))

    def _encode(self, input_ids: Tensor, lengths_B: Tensor | None, mask: Tensor | None) -> Steps[Tensor]:
        encoder, size = self.model.encoder, input_ids.shape[1]
        embedded_BsD = self.model.embedding(input_ids)
        begin, whole = self.link.rank * size, self.link.size * size
        hidden_BsD = encoder.dropout(encoder.positions(embedded_BsD, lengths_B, begin=begin, whole=whole))
        for layer in encoder.layers:
            hidden_BsD = yield from self.encoder_layer(cast("EncoderLayer", layer), hidden_BsD, mask)
        return (yield from self.hybrid_layer(self.model.hybrid, encoder.norm(hidden_BsD), lengths_B, mask))

    def encoder_layer(self, layer: EncoderLayer, hidden_BsD: Tensor, mask: Tensor | None) -> Steps[Tensor]:
        """[B,s,D] → [B,s,D]; the mask is that of whole rows, here and below."""
        mixed_BsD = yield from self_attention(self.link, layer.attention, layer.attention_norm(hidden_BsD), mask)
        hidden_BsD = hidden_BsD + layer.dropout(mixed_BsD)
        return hidden_BsD + layer.dropout(layer.feed_forward(layer.feed_forward_norm(hidden_BsD)))

    def hybrid_layer(
        self, layer: HybridLayer, hidden_BsD: Tensor, lengths_B: Tensor | None, mask: Tensor | None
    ) -> Steps[Tensor]:
        """[B,s,D] → [B,s,D]."""
        shares_U = torch.softmax(layer.mix, dim=0)
        units = [self.hybrid_unit(cast("HybridUnit", unit), hidden_BsD, lengths_B, mask) for unit in layer.units]
        states = yield from together(units)
        return torch.stack([state * shares_U[index] for index, state in enumerate(states)]).sum(0)

    def hybrid_unit(
        self, unit: HybridUnit, hidden_BsD: Tensor, lengths_B: Tensor | None, mask: Tensor | None
    ) -> Steps[Tensor]:
        """[B,s,D] → [B,s,D]."""
        mixed_BsD = yield from self_attention(self.link, unit.attention, hidden_BsD, mask)
        halo = Halo(self.link, mixed_BsD, unit.recurrence.halo)
        yield
        recurred_BsD = unit.recurrence(mixed_BsD, local_lengths(self.link, mixed_BsD, lengths_B), halo.finish())
        return unit.norm(hidden_BsD + unit.dropout(mixed_BsD + recurred_BsD))

    def decoder_states(self, kind: str, memory: Tensor, lengths: Tensor | None, target_ids: Tensor) -> Tensor:
        """Decoder states of whole targets, [B,T] reading slices of a memory → [B,T,D].

        Raises ValueError for an unknown kind or a target longer than the position table.
        """
        decoder, tokens, ranks = self.model.decoder(kind), target_ids.shape[1], self.link.size
        decoder.check(tokens)
        size = -(-tokens // ranks)
        # What is added stands behind every real token, so that none of them sees it.
        whole_BT = functional.pad(target_ids, (0, ranks * size - tokens), value=self.model.config.pad_token_id)
        own_Bt = whole_BT[:, self.link.rank * size :][:, :size]
        mask = key_mask(lengths, memory.shape[1] * ranks)
        tasks = [
            self._decode(decoder, own_Bt[rows], memory[rows], _rows(mask, rows), tokens) for rows in self._turns(memory)
        ]
        states_BtD = torch.cat(run(together(tasks)))
        return self.link.gather(states_BtD).movedim(0, 1).flatten(1, 2)[:, :tokens]

    def _decode(
        self, decoder: Decoder, target_Bt: Tensor, memory_BsD: Tensor, mask: Tensor | None, tokens: int
    ) -> Steps[Tensor]:
        layers = [cast("DecoderLayer", layer) for layer in decoder.layers]
        ahead = start_keys_values(self.link, layers[0].cross_attention, memory_BsD)
        size = target_Bt.shape[1]
        begin, whole = self.link.rank * size, self.link.size * size
        # Named, the length keeps the table from being stretched over what was added.
        length = torch.tensor([tokens], device=target_Bt.device)
        embedded_BtD = self.model.embedding(target_Bt)
        hidden_BtD = decoder.dropout(decoder.positions(embedded_BtD, length, begin=begin, whole=whole))
        for index, layer in enumerate(layers):
            keys_values = ahead
            if index + 1 < len(layers):
                ahead = start_keys_values(self.link, layers[index + 1].cross_attention, memory_BsD)
            hidden_BtD = yield from self.decoder_layer(layer, hidden_BtD, memory_BsD, mask, keys_values)
        return decoder.norm(hidden_BtD)

    def decoder_layer(
        self,
        layer: DecoderLayer,
        hidden_BtD: Tensor,
        memory_BsD: Tensor,
        mask: Tensor | None,
        keys_values: Exchange | None = None,
    ) -> Steps[Tensor]:
        """[B,t,D] → [B,t,D]; `keys_values` where they are on their way already."""
        if keys_values is None:
            keys_values = start_keys_values(self.link, layer.cross_attention, memory_BsD)
        normed_BtD = layer.self_norm(hidden_BtD)
        mixed_BtD = yield from self_attention(self.link, layer.self_attention, normed_BtD, None, causal=True)
        hidden_BtD = hidden_BtD + layer.dropout(mixed_BtD)
        normed_BtD = layer.cross_norm(hidden_BtD)
        read_BtD = yield from cross_attention(self.link, layer.cross_attention, normed_BtD, keys_values, mask)
        hidden_BtD = hidden_BtD + layer.dropout(read_BtD)
        return hidden_BtD + layer.dropout(layer.feed_forward(layer.feed_forward_norm(hidden_BtD)))

    def _turns(self, rows: Tensor) -> list[slice]:
        """The parts of a batch; a batch without rows is one part, for every rank computes the same graph."""
        count = max(1, min(self.parts, len(rows)))
        return [slice(part * len(rows) // count, (part + 1) * len(rows) // count) for part in range(count)]


def _check(model: HybridModel, ranks: int) -> None:
    """Raises ValueError where a group cannot share a model."""
    if model.config.recurrent_block is None:
        raise ValueError(
            "recurrent_block = None is one recurrence over whole rows, which cannot be split: choose a block size, "
            "as the presets do"
        )
    for module in model.modules():
        if isinstance(module, (SelfAttention, CrossAttention)) and module.heads % ranks:
            fitting = [str(size) for size in range(1, module.heads + 1) if module.heads % size == 0]
            raise ValueError(
                f"{ranks} sequence-parallel ranks cannot share {module.heads} attention heads evenly: "
                f"choose {' or '.join(fitting)} ranks"
            )


def _replace(module: nn.Module, **methods: Callable[..., Any]) -> None:
    for name, method in methods.items():
        assert hasattr(module, name), name
        setattr(module, name, method)


def _waiting(steps: Callable[..., Steps[Tensor]], module: nn.Module) -> Callable[..., Tensor]:
    """A module's `forward` for callers that walk its layers themselves, such as pipeline stages."""
    return lambda *arguments: run(steps(module, *arguments))


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _refuse_greedy(*_: object, **__: object) -> None:
    raise ValueError("a model under sequence parallelism trains: load its weights into another to decode")
