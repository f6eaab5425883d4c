"""The heads of a model whose memory is split over a group: whole results from slices, equal on every rank.

Each head is a computation in steps: it yields whenever something of its own is on its way, so that the losses of a
batch can take turns (`split_losses`). Called as the model's methods they are run alone, one after the other.

Only small things travel: a mean, three scores a token, a loss a target, two numbers a target for the copy distribution.
The decoders have rows split, not positions: one exchange turns slices of all rows into whole memories of some rows, and
their layers then need no other rank:

    memory [B, S/N, D] ── exchange ──▶ [B/N, S, D] ── decoder ──▶ states [B/N, T, D] ── gather ──▶ [B, T, D]
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.attention import token_mask
from model.cross_entropy import IGNORE
from model.network import HybridModel
from model.pointer import FLOOR
from training.parallel.halo import Halo
from training.parallel.link import Link
from training.turns import Steps

NOTHING = -1e30
"""In place of -inf, whose log-sum has no gradient, where a slice holds nothing of a row."""


class SplitHeads:
    """What takes the place of a model's own methods. Shapes: s is a slice of S."""

    def __init__(self, model: HybridModel, link: Link) -> None:
        self.model, self.link = model, link
        self.whole_decoder_states, self.whole_target_losses = model.decoder_states, model.target_losses
        self.whole_log_mixture = model.pointer.log_mixture

    def task_logits(self, memory: Tensor, lengths: Tensor | None = None) -> Steps[Tensor]:
        """Slices [B,s,D] → [B,3]."""
        lengths_B = whole_lengths(self.link, memory, lengths)
        inside_Bs1 = inside(self.link, memory, lengths)[..., None]
        sums = self.link.start_gather(torch.where(inside_Bs1, memory, 0).sum(1))
        yield
        return self.model.router.scores(sums.finish().sum(0) / lengths_B[:, None])

    def emissions(self, memory: Tensor, lengths: Tensor | None = None) -> Steps[Tensor]:
        """Slices [B,s,D] → whole emissions [B,S,3], which the span CRF reads as ever."""
        decoder = self.model.extractive
        halo = Halo(self.link, memory, decoder.recurrence.halo)
        yield
        recurred_BsD = decoder.recurrence(memory, local_lengths(self.link, memory, lengths), halo.finish())
        own_Bs3 = decoder.output(decoder.norm(memory + decoder.dropout(recurred_BsD)))
        slices = self.link.start_gather(own_Bs3)
        yield
        return slices.finish().movedim(0, 1).flatten(1, 2)

    def decoder_states(self, kind: str, memory: Tensor, lengths: Tensor | None, target_ids: Tensor) -> Steps[Tensor]:
        """Slices [B,s,D] and whole targets [B,T] → whole states [B,T,D]."""
        memory_bSD = yield from self.own_memories(memory)
        own_lengths_b = None if lengths is None else self.own_rows(lengths).clamp(min=1)
        states_bTD = self.whole_decoder_states(kind, memory_bSD, own_lengths_b, self.own_rows(target_ids))
        return (yield from self.all_rows(states_bTD, len(target_ids)))

    def own_memories(self, memory_BsD: Tensor) -> Steps[Tensor]:
        """Slices of all rows → whole memories of this rank's rows, [b,S,D]."""
        exchange = self.link.start(self._shared(memory_BsD).flatten(0, 1))
        yield
        memory_NbsD = exchange.finish().unflatten(0, (self.link.size, -1))
        return memory_NbsD.movedim(0, 1).flatten(1, 2)

    def own_rows(self, whole: Tensor) -> Tensor:
        """This rank's rows of what every rank has, [B,…] → [b,…]."""
        return self._shared(whole)[self.link.rank]

    def all_rows(self, own_bTD: Tensor, rows: int) -> Steps[Tensor]:
        """Every rank's rows, [b,T,D] → [B,T,D]."""
        exchange = self.link.start_gather(own_bTD)
        yield
        return exchange.finish().flatten(0, 1)[:rows]

    def _shared(self, tensor: Tensor) -> Tensor:
        """[B,…] → [N,b,…], with rows of zeros behind the last where ranks cannot share them evenly."""
        missing = -len(tensor) % self.link.size
        padded = functional.pad(tensor, (*[0, 0] * (tensor.ndim - 1), 0, missing))
        return padded.unflatten(0, (self.link.size, -1))

    def target_losses(self, states: Tensor, labels: Tensor) -> Steps[Tensor]:
        """Cross-entropy of whole states [B,T,D], [B,T]: each rank computes the logits of its share of the targets."""
        count = labels.numel()
        share = -(-count // self.link.size)
        own = slice(self.link.rank * share, (self.link.rank + 1) * share)
        missing = share - len(range(count)[own])
        states_ND = functional.pad(states.flatten(0, 1)[own], (0, 0, 0, missing))
        labels_N = functional.pad(labels.flatten()[own], (0, missing), value=IGNORE)
        losses = self.link.start_gather(self.whole_target_losses(states_ND[None], labels_N[None])[0])
        yield
        return losses.finish().flatten()[:count].view(labels.shape)

    def masked_token_losses(self, memory: Tensor, positions: Tensor, labels: Tensor) -> Steps[Tensor]:
        """Cross-entropy at positions of the whole rows, [B,M]: each rank computes the logits of those in its slice."""
        local_BM = positions.long() - self.link.rank * memory.shape[1]
        own_BM = (labels != IGNORE) & (local_BM >= 0) & (local_BM < memory.shape[1])
        row_N, place_N = own_BM.nonzero(as_tuple=True)
        states_ND = self.model.lm_head(memory[row_N, local_BM[row_N, place_N]])
        own_N = self.whole_target_losses(states_ND[None], labels[row_N, place_N][None])[0]
        losses = self.link.start_gather(own_N.new_zeros(labels.shape).index_put((row_N, place_N), own_N))
        yield
        return losses.finish().sum(0)

    def log_target(
        self,
        states_BTD: Tensor,
        log_generated_BT: Tensor,
        copy_keys_BsD: Tensor,
        lengths_B: Tensor | None,
        source_Bs: Tensor,
        target_BT: Tensor,
    ) -> Steps[Tensor]:
        """`PointerDecoder.log_target` of slices of copy keys and sources; targets are whole, [B,T] as the result."""
        log_copied_BT = yield from self.log_copied(states_BTD, copy_keys_BsD, lengths_B, source_Bs, target_BT)
        return self.mixed(states_BTD, log_generated_BT, log_copied_BT)

    def log_copied(
        self,
        states_BTD: Tensor,
        copy_keys_BsD: Tensor,
        lengths_B: Tensor | None,
        source_Bs: Tensor,
        target_BT: Tensor,
    ) -> Steps[Tensor]:
        """log of the copy distribution's share of given tokens, [B,T].

        A rank has the scores of its slice alone. Two sums of their exponentials are enough of them: over the slice,
        and over those of its tokens that are the target.
        """
        query_BTD = self.model.pointer.copy_query(states_BTD)
        scores_BTs = (query_BTD @ copy_keys_BsD.transpose(1, 2)).float() * query_BTD.shape[-1] ** -0.5
        inside_B1s = inside(self.link, copy_keys_BsD, lengths_B)[:, None]
        same_BTs = (source_Bs[:, None] == target_BT[..., None]) & inside_B1s
        own = [torch.logsumexp(scores_BTs.masked_fill(~chosen, NOTHING), dim=-1) for chosen in (inside_B1s, same_BTs)]
        sums = self.link.start_gather(torch.stack(own))
        yield
        all_BT, copied_BT = torch.logsumexp(sums.finish(), dim=0)
        return copied_BT - all_BT

    def mixed(self, states_BTD: Tensor, log_generated_BT: Tensor, log_copied_BT: Tensor) -> Tensor:
        """log of the pointer's mixture, [B,T]."""
        gate_BT = self.model.pointer.gate(states_BTD)[..., 0].float()
        copied_BT = torch.sigmoid(-gate_BT) * log_copied_BT.exp()
        return torch.log(torch.sigmoid(gate_BT) * log_generated_BT.float().exp() + copied_BT + FLOOR)

    def log_mixture(
        self, states_BTD: Tensor, logits_BTV: Tensor, copy_keys_BsD: Tensor, lengths_B: Tensor | None, source_Bs: Tensor
    ) -> Steps[Tensor]:
        """`PointerDecoder.log_mixture` of slices, [B,T,V]: for scoring, so copy keys and sources are gathered."""
        gathers = [self.link.start_gather(own) for own in (copy_keys_BsD, source_Bs)]
        yield
        keys_BSD, source_BS = (gather.finish().movedim(0, 1).flatten(1, 2) for gather in gathers)
        return self.whole_log_mixture(states_BTD, logits_BTV, keys_BSD, lengths_B, source_BS)


def whole_lengths(link: Link, slice_BsD: Tensor, lengths_B: Tensor | None) -> Tensor:
    """Lengths of the rows that these are slices of, [B]."""
    if lengths_B is not None:
        return lengths_B
    return torch.full((len(slice_BsD),), link.size * slice_BsD.shape[1], device=slice_BsD.device)


def local_lengths(link: Link, slice_BsD: Tensor, lengths_B: Tensor | None) -> Tensor:
    """The same, counted from the slice's first token: 0 or less where a row ends before it."""
    return whole_lengths(link, slice_BsD, lengths_B) - link.rank * slice_BsD.shape[1]


def inside(link: Link, slice_BsD: Tensor, lengths_B: Tensor | None) -> Tensor:
    """True at the rows' tokens, [B,s]."""
    return token_mask(local_lengths(link, slice_BsD, lengths_B), slice_BsD.shape[1])
