"""The heads of a model whose memory is split over a group: whole results from slices, equal on every rank.

Only small things travel: a mean, three scores a token, a loss a target, two numbers a target for the copy distribution.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.attention import token_mask
from model.losses import IGNORE
from model.network import HybridModel
from model.pointer import FLOOR
from training.parallel.halo import Halo
from training.parallel.link import Link

NOTHING = -1e30
"""In place of -inf, whose log-sum has no gradient, where a slice holds nothing of a row."""


class SplitHeads:
    """What takes the place of a model's own methods."""

    def __init__(self, model: HybridModel, link: Link) -> None:
        self.model, self.link = model, link
        self.whole_target_losses, self.whole_log_mixture = model.target_losses, model.pointer.log_mixture

    def task_logits(self, memory: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Slices [B,s,D] → [B,3]."""
        lengths_B = whole_lengths(self.link, memory, lengths)
        inside_Bs1 = inside(self.link, memory, lengths)[..., None]
        sums_NBD = self.link.gather(torch.where(inside_Bs1, memory, 0).sum(1))
        return self.model.router.scores(sums_NBD.sum(0) / lengths_B[:, None])

    def emissions(self, memory: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Slices [B,s,D] → whole emissions [B,S,3], which the span CRF reads as ever."""
        decoder = self.model.extractive
        halo = Halo(self.link, memory, decoder.recurrence.halo)
        recurred_BsD = decoder.recurrence(memory, local_lengths(self.link, memory, lengths), halo.finish())
        own_Bs3 = decoder.output(decoder.norm(memory + decoder.dropout(recurred_BsD)))
        return self.link.gather(own_Bs3).movedim(0, 1).flatten(1, 2)

    def target_losses(self, states: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Cross-entropy of whole states [B,T,D], [B,T]: each rank computes the logits of its share of the targets."""
        count = labels.numel()
        share = -(-count // self.link.size)
        own = slice(self.link.rank * share, (self.link.rank + 1) * share)
        missing = share - len(range(count)[own])
        states_ND = functional.pad(states.flatten(0, 1)[own], (0, 0, 0, missing))
        labels_N = functional.pad(labels.flatten()[own], (0, missing), value=IGNORE)
        own_N = self.whole_target_losses(states_ND[None], labels_N[None], smoothing)[0]
        return self.link.gather(own_N).flatten()[:count].view(labels.shape)

    def masked_token_losses(self, memory: Tensor, positions: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy at positions of the whole rows, [B,M]: each rank computes the logits of those in its slice."""
        local_BM = positions.long() - self.link.rank * memory.shape[1]
        own_BM = (labels != IGNORE) & (local_BM >= 0) & (local_BM < memory.shape[1])
        row_N, place_N = own_BM.nonzero(as_tuple=True)
        states_ND = self.model.lm_head(memory[row_N, local_BM[row_N, place_N]])
        own_N = self.whole_target_losses(states_ND[None], labels[row_N, place_N][None])[0]
        losses_BM = own_N.new_zeros(labels.shape).index_put((row_N, place_N), own_N)
        return self.link.gather(losses_BM).sum(0)

    def log_target(
        self,
        states_BTD: Tensor,
        log_generated_BT: Tensor,
        copy_keys_BsD: Tensor,
        lengths_B: Tensor | None,
        source_Bs: Tensor,
        target_BT: Tensor,
    ) -> Tensor:
        """`PointerDecoder.log_target` of slices of copy keys and sources; targets are whole, [B,T] as the result.

        A rank has the scores of its slice alone. Two sums of their exponentials are enough of them: over the slice,
        and over those of its tokens that are the target.
        """
        pointer = self.model.pointer
        query_BTD = pointer.copy_query(states_BTD)
        scores_BTs = (query_BTD @ copy_keys_BsD.transpose(1, 2)).float() * query_BTD.shape[-1] ** -0.5
        inside_B1s = inside(self.link, copy_keys_BsD, lengths_B)[:, None]
        same_BTs = (source_Bs[:, None] == target_BT[..., None]) & inside_B1s
        sums = [torch.logsumexp(scores_BTs.masked_fill(~chosen, NOTHING), dim=-1) for chosen in (inside_B1s, same_BTs)]
        all_BT, copied_BT = torch.logsumexp(self.link.gather(torch.stack(sums)), dim=0)
        gate_BT = pointer.gate(states_BTD)[..., 0].float()
        copied_BT = torch.sigmoid(-gate_BT) * torch.exp(copied_BT - all_BT)
        return torch.log(torch.sigmoid(gate_BT) * log_generated_BT.float().exp() + copied_BT + FLOOR)

    def log_mixture(
        self, states_BTD: Tensor, logits_BTV: Tensor, copy_keys_BsD: Tensor, lengths_B: Tensor | None, source_Bs: Tensor
    ) -> Tensor:
        """`PointerDecoder.log_mixture` of slices, [B,T,V]: for scoring, so copy keys and sources are gathered."""
        keys_BSD, source_BS = (self.link.gather(own).movedim(0, 1).flatten(1, 2) for own in (copy_keys_BsD, source_Bs))
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
